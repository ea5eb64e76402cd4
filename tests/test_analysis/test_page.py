"""The page of pictures."""

from s6la_mm.analysis.page import write_page


def test_every_part_of_a_section(tmp_path):
    sections = [
        dict(head='Text & more', text='x < y', pictures=['a.png']),
        dict(head='Table', table=[('metric', 'best'), ('mIoU', '0.5'), ('<b>', '–')]),
        dict(head='Grid', legend=[('road', (128, 64, 128))], pictures=['b.png', 'c"d.png'], in_grid=True),
    ]
    path = tmp_path / 'index.html'
    write_page(str(path), 'A <title>', 'Checkpoint: <x>', sections)
    text = path.read_text(encoding='utf-8')
    assert '<title>A &lt;title&gt;</title>' in text and '<p>Checkpoint: &lt;x&gt;</p>' in text
    assert '<h2>Text &amp; more</h2>\n<p>x &lt; y</p>' in text
    assert text.count('<th>') == 2 and '<tr><td>mIoU</td><td>0.5</td></tr>' in text and '<td>&lt;b&gt;</td>' in text
    assert 'style="background: rgb(128, 64, 128)"></span>road' in text
    assert (
        text.index('src="a.png"') < text.index('class="grid"') < text.index('src="b.png"') < text.index('src="c&#34;d')
    )
    assert text.count('<p>') == 2 and text.count('<table>') == 1  # no empty parts
