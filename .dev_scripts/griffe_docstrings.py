"""Lets the site read docstrings as OpenMMLab writes them: ``Example:`` sections, Sphinx roles, literal blocks."""

from __future__ import annotations

import re

import griffe


class OpenMMLabDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed as Google's style with Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Called by griffe once for each module, class and function."""
        if obj.docstring is None:
            return
        text = re.sub(r'(?m)^Example:$', 'Examples:', obj.docstring.value)  # the one name that griffe knows
        text = re.sub(r':[a-z]+:`~?([^`]+)`', r'`\1`', text)  # :class:`Runner`
        obj.docstring.value = re.sub(r'(?m)::$', ':', text)  # the indented lines that follow are code in Markdown too
