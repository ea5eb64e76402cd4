"""The page of pictures that a report consists of."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment

from ..common.files import write_atomically

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; }
td, th { padding: .15em 1em .15em 0; text-align: left; }
td + td { font-variant-numeric: tabular-nums; }
figure { margin: 0; }
img { max-width: 100%; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(26em, 1fr)); gap: 1em; }
.grid img { width: 100%; }
.colour { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: text-bottom; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ subtitle }}</p>
{% for section in sections %}
<h2>{{ section.head }}</h2>
{% if section.text %}
<p>{{ section.text }}</p>
{% endif %}
{% for name, colour in section.legend %}
<span class="colour" style="background: rgb{{ colour }}"></span>{{ name }}
{% endfor %}
{% if section.table %}
<table>
<tr>{% for cell in section.table[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section.table[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
<div{% if section.in_grid %} class="grid"{% endif %}>
{% for picture in section.pictures %}
<figure><img src="{{ picture }}" alt="{{ section.head }}" loading="lazy"></figure>
{% endfor %}
</div>
{% endfor %}
</body>
</html>
""")


def write_page(path: str, title: str, subtitle: str, sections: Sequence[dict]) -> None:
    """Writes an HTML page that needs nothing but its pictures.

    Args:
        path (str): The file.
        title (str): Of the page.
        subtitle (str): A line below it.
        sections (Sequence[dict]): From top to bottom: ``head``, and where wanted ``text``, ``table`` (rows of cells,
            the first one its head), ``legend`` (names with their colours, (red, green, blue)), ``pictures`` (files
            relative to the page) and ``in_grid``, whether these lie side by side.

    Example:
        >>> write_page('index.html', 'A <b>', '', [dict(head='Curves', pictures=['loss.png'])])
        >>> text = open('index.html').read()
        >>> '<h1>A &lt;b&gt;</h1>' in text, '<img src="loss.png"' in text
        (True, True)
    """
    write_atomically(path, _PAGE.render(title=title, subtitle=subtitle, sections=sections))
