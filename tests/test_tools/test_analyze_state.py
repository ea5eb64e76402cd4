"""tools/analysis_tools/analyze_state.py."""

from tool_runner import call


def test_analyze_state(retinanet, tmp_path):
    data, config = retinanet['data'], retinanet['config']
    checkpoint, images = retinanet['work_dir'] / 'iter_4.pth', retinanet['images']
    out = tmp_path / 'state'
    bad = tmp_path / 'bad.jpg'  # which is named at the end, and spoils nothing
    bad.write_bytes(b'no image')
    result = call('analysis_tools/analyze_state.py', config, checkpoint, bad, images, '--out-dir', out, **data)
    output = result.stdout
    assert result.returncode == 1 and '1 of 4 failed' in result.stderr and 'bad.jpg cannot be read' in result.stderr
    assert f'Page: {out}/index.html' in output and output.count('holds') == 7 and '  new 0.' in output
    assert {path.name for path in out.iterdir()} >= {'index.html', 'analysis.json', 'maps_1.png', 'decay.png'}
    plain = ('--cfg-options', 'model.backbone.type=mmdet.ResNet')
    result = call('analysis_tools/analyze_state.py', config, checkpoint, images, *plain, '--out-dir', out, **data)
    assert result.returncode == 1 and 'ResNet carries no state' in result.stderr
