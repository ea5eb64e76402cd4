"""The table of parameters and FLOPs: rows recomputed, known numbers of the bases, the marks of the document."""

import runpy

import pytest
from backbone_checks import parameters_on_meta
from tool_runner import ROOT

from s6la_mm.backbones import S6LASwin
from s6la_mm.backbones.architectures import architectures, find_architecture

pytest.importorskip('mmpretrain')

TOOL = runpy.run_path(str(ROOT / '.dev_scripts/make_model_table.py'))
ROWS = {row.title: row for row in architectures().values()}


def plain_count(title):
    return TOOL['count'](ROWS[title].plain, ROWS[title])


DOCUMENT = (ROOT / 'docs/model_zoo.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', ['ResNet-18', 'ResNet-50', 'DeiT-small', 'Swin-tiny', 'PVTv2-B0', 'PVTv2-B1'])
def test_table_is_true(name):
    assert TOOL['table']([ROWS[name]])[-1] in DOCUMENT.splitlines()


def titles(begin, end):
    """Of the rows of the table between two marks."""
    lines = DOCUMENT.partition(TOOL[begin])[2].partition(TOOL[end])[0].splitlines()
    return [line.split(' | ')[0][2:] for line in lines if line.startswith('| ') and ' M |' in line]


def test_document_has_every_row_once():
    assert titles('BEGIN', 'END') == [*ROWS]
    assert titles('BEGIN_CONFIGS', 'END_CONFIGS') == [*TOOL['CONFIGS'].values()]


@pytest.mark.parametrize(
    'name',
    [
        'segformer/segformer_s6la-pvtv2-b0_8xb2-160k_ade20k-512x512',
        *(pytest.param(name, marks=pytest.mark.nightly) for name in TOOL['CONFIGS'] if 'pvtv2' not in name),
    ],
)
def test_table_of_configs_is_true(name):
    assert TOOL['config_table']([name])[-1] in DOCUMENT.splitlines()


def test_counts_of_known_networks():
    """Published: DeiT-S 22.05 M and 4.6 G (mmpretrain's model zoo), ResNet-50 25.56 M and 4.1 G."""
    parameters, flops = plain_count('DeiT-small')
    assert parameters == pytest.approx(22.05e6, abs=5e3) and flops == pytest.approx(4.6e9, rel=0.01)
    parameters, flops = plain_count('ResNet-50')
    assert parameters == pytest.approx(25.56e6, abs=5e3) and flops == pytest.approx(4.1e9, rel=0.01)
    backbone = sum(parameters_on_meta(S6LASwin, arch='tiny').values())
    assert TOOL['count'](S6LASwin, ROWS['Swin-tiny'])[0] == backbone + 769 * 1000


def test_marks():
    with pytest.raises(SystemExit, match='once each'):
        TOOL['replace']('no marks', [])
    assert TOOL['replace'](DOCUMENT, ['| new |']).count('| new |') == 1


@pytest.mark.parametrize('name', ['r50', 's6la_r50', 'S6LA-R50'])
def test_spellings_of_an_architecture(name):
    assert find_architecture(name) is ROWS['ResNet-50']


def test_unknown_architecture():
    with pytest.raises(ValueError, match=r"'s6la_r51' is no architecture: use one of s6la_r18, .*s6la_pvtv2_b5"):
        find_architecture('s6la_r51')
