"""The documents name files that exist, and options that the tools have (.dev_scripts/docs.sh finds broken links)."""

import re

import pytest
from tool_runner import ROOT

PAGES = [*ROOT.glob('*.md'), *ROOT.glob('tools/*.md'), *ROOT.glob('docs/**/*.md')]
FOLDERS = ('configs', 'docs', 'requirements', 's6la_mm', 'tests', 'tools', '.ci', '.dev_scripts', '.github')
PATH = re.compile(rf'(?<![\w/.-])(?:{"|".join(map(re.escape, FOLDERS))})/[\w./-]*[\w/]')


def paths(text):
    """What looks like a path in this repository; ``work_dirs/…`` does not, nor where ``NAME`` stands for a name."""
    return {match.rstrip('.') for match in PATH.findall(text) if 'NAME' not in match}


def missing(text):
    return sorted(path for path in paths(text) if not (ROOT / path).exists())


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    text = page.read_text(encoding='utf-8')
    if page.name == 'CHANGELOG.md':
        text = text.split('\n### Moved')[0]  # what follows names where things were
    assert missing(text) == []


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'tools/README.md'])
def test_links_outside_of_the_site_exist(page):
    links = re.findall(r'\]\(([^)#]+)[^)]*\)', (ROOT / page).read_text(encoding='utf-8'))
    assert [link for link in links if '://' not in link and not (ROOT / page).parent.joinpath(link).exists()] == []


def unknown_options(text):
    """Options of Python scripts in command lines that neither the script nor what scripts share defines."""
    shared = (ROOT / 's6la_mm/common/cli.py').read_text()
    commands = re.findall(r'python ((?:tools|\.dev_scripts)/[\w/]+\.py)([^`\n#]*)', text.replace('\\\n', ' '))
    defined = {script: (ROOT / script).read_text() + shared for script, _ in commands}
    return [
        (script, option)
        for script, arguments in commands
        for option in re.findall(r'(?<!\S)\[?(--[\w-]+)', arguments)
        if f"'{option}'" not in defined[script]
    ]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page):
    assert unknown_options(page.read_text(encoding='utf-8')) == []


def test_what_is_missing_is_found():
    text = 'run `tools/train.py`, not `tools/trian.py configs/nowhere.py`; work_dirs/tools/x.py is not here.'
    assert missing(text) == ['configs/nowhere.py', 'tools/trian.py']
    command = 'python tools/train.py CONFIG \\\n    [--resume [FILE]] --ampere  # --not-this'
    assert unknown_options(command) == [('tools/train.py', '--ampere')]


def test_every_tool_is_named():
    tools = [path.name for path in (ROOT / 'tools').rglob('*') if path.suffix in ('.py', '.sh')]
    text = (ROOT / 'tools/README.md').read_text(encoding='utf-8')
    assert [tool for tool in tools if tool not in text] == []


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 130
