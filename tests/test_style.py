"""What the linters do not check: one dialect of docstrings, and the same versions of the linters everywhere."""

import ast
import re

import yaml
from tool_runner import ROOT

FOLDERS = ('s6la_mm', 'tools', '.dev_scripts', 'tests')
SECTION = re.compile(r'(?m)^(Args|Attributes|Returns|Raises):\n((?:    .*\n|\n)+)')
# `name (type): Text.`; the text may begin with code, and what * and ** collect needs no type.
ENTRY = re.compile(r'(?:\w+ \(.+?\)|\*{1,2}\w+(?: \(.+?\))?): \S')
RETURNED = re.compile(r'[\w.\[\], |]+: \S')
RAISED = re.compile(r'[\w.]+: [A-Z`]')
OTHER = '''
def f(a, b, *c):
    """Text.

    Args:
        a: text.
        b (int, optional): Text
            of two lines: more.
        *c: Text.

    Returns:
        Text.

    Raises:
        ValueError: text.
    """
'''


def other_dialects(source: str) -> list[str]:
    """First lines of entries in docstrings that are written otherwise; of what is returned, the first line."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    found = []
    for title, body in SECTION.findall('\n'.join(filter(None, docstrings)) + '\n'):
        entries = re.findall(r'(?m)^    (\S.*)', body)
        if title == 'Returns':
            entries = [] if RETURNED.match(entries[0]) else entries[:1]
        else:
            entries = [entry for entry in entries if not (RAISED if title == 'Raises' else ENTRY).match(entry)]
        found += entries
    return found


def test_docstrings_have_one_dialect():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py')]
    found = {str(path): other_dialects(path.read_text(encoding='utf-8')) for path in files}
    assert {path: entries for path, entries in found.items() if entries} == {}
    assert other_dialects(OTHER) == ['a: text.', 'Text.', 'ValueError: text.']


def test_pre_commit_has_the_versions_of_the_requirements():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    versions = {pin for hook in hooks for pin in hook['additional_dependencies'] if not pin.startswith('pre-commit')}
    lint = re.findall(r'(?m)^\S+==\S+', (ROOT / 'requirements/lint.txt').read_text())
    assert versions == set(lint)
    assert f'\n{lint[0]} ' in (ROOT / 'requirements/pinned.txt').read_text()
