"""Test a checkpoint of any OpenMMLab scope (mmdet, mmseg, mmpretrain): the config decides."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from copy import deepcopy

from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

import s6la_mm  # noqa: F401  (allow-lists what checkpoints hold, also for configs that don't import it)
from s6la_mm.checkpoint.reading import weights_only
from s6la_mm.common.cli import (
    add_runner_arguments,
    clear_errors,
    load_config,
    require_file,
)
from s6la_mm.common.configs import datasets_of, package_of
from s6la_mm.common.errors import UsageError
from s6la_mm.common.fonts import make_legible
from s6la_mm.config_types import type_name
from s6la_mm.engine import build_runner


def parse_args() -> argparse.Namespace:
    """Parse the command line; ``LOCAL_RANK`` is set where the launcher did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show every prediction in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='draw every prediction into this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows a picture')
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's tta_model and tta_pipeline"
    )
    parser.add_argument(
        '--fuse-conv-bn', action='store_true', help='fold batch norms into the convolutions before them: faster'
    )
    add_runner_arguments(parser)
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: must end with .pkl or .pickle')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def enable_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Switch on the scope's own visualization hook, for every image.

    Args:
        cfg (Config): The config, changed in place.
        show (bool): Open a window for each image.
        show_dir (str, optional): Folder for the pictures, relative to the current folder whatever the scope.
        wait_time (float): Seconds for each window.

    Raises:
        UsageError: If the config has no visualization hook.
    """
    types = dict(mmdet='DetVisualizationHook', mmseg='SegVisualizationHook', mmpretrain='VisualizationHook')
    scope = package_of(cfg)
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if scope not in types or hook is None:
        raise UsageError(
            f'--show and --show-dir need default_hooks.visualization (default_scope {scope!r}): add '
            f"default_hooks = dict(visualization=dict(type='{types.get(scope, 'VisualizationHook')}'))"
        )
    hook.update(show=show, wait_time=wait_time)
    if show_dir is not None:
        show_dir = os.path.abspath(show_dir)
    if scope == 'mmdet':
        hook.update(draw=True, test_out_dir=show_dir)
    elif scope == 'mmseg':
        hook.update(draw=True, interval=1)
        # The hook asks for runner.iter, which would build the training set, maybe not on this machine.
        cfg.train_cfg = cfg.train_dataloader = cfg.optim_wrapper = cfg.param_scheduler = None
        if show_dir is not None:
            cfg.visualizer.save_dir = show_dir
    else:
        hook.update(enable=True, interval=1, out_dir=show_dir)


def enable_tta(cfg: Config) -> None:
    """Wrap the model in the config's ``tta_model`` and test with its ``tta_pipeline``.

    A detection config that has none gets mmdet's default: image and mirror image, boxes merged by NMS.

    Args:
        cfg (Config): The config, changed in place.

    Raises:
        UsageError: If a config of another scope lacks one of the two, or the detector predicts masks.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing and package_of(cfg) != 'mmdet':
        raise UsageError(f'--tta: the config has no {" and no ".join(missing)}; add what it lacks')
    if 'tta_model' in missing:
        nms = dict(type='nms', iou_threshold=0.5)
        # By its module: it is registered with mmengine, in which the scope mmdet is not looked for.
        cfg.tta_model = dict(type='mmdet.models.DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
    if missing:
        print_log(f"--tta: no {' and no '.join(missing)} in the config, mmdet's default is used", 'current')
    if type_name(cfg.tta_model) == 'DetTTAModel' and (cfg.model.get('roi_head') or {}).get('mask_head') is not None:
        raise UsageError(
            '--tta: mmdet merges boxes but no masks. To test the boxes alone add --cfg-options '
            'model.roi_head.mask_head=None model.roi_head.mask_roi_extractor=None test_evaluator.metric=bbox'
        )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets_of(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.get('tta_pipeline') or with_mirror_image(dataset.pipeline)


def with_mirror_image(pipeline: list) -> list:
    """A detector's test pipeline that gives the image and its mirror image."""
    pack = deepcopy(pipeline[-1])
    # Merging has to undo the flip: both keys must reach the model.
    pack.meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    flips = [dict(type='mmdet.RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    return [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]


class FuseHook(Hook):
    """Folds batch norms into the convolutions before them, when the weights are loaded."""

    def before_test(self, runner: Runner) -> None:
        """Called behind the loading, which needs the norms."""
        fuse_conv_bn(runner.model)


class DumpPredictions(DumpResults):
    """``DumpResults`` without what a prediction does not need: ground truth and the logits of every pixel."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """See ``DumpResults.process``."""
        drop = ('gt_sem_seg', 'seg_logits')
        kept = [{key: value for key, value in s.items() if key not in drop} for s in data_samples]
        super().process(data_batch, kept)


def main() -> None:
    """Test as the command line says."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        require_file(args.checkpoint, 'checkpoint')
        cfg.load_from = args.checkpoint
        cfg.resume = False  # the config that a resumed training wrote says True
        if args.show or args.show_dir is not None:
            enable_drawing(cfg, args.show, args.show_dir, args.wait_time)
        if args.tta:
            enable_tta(cfg)
    with clear_errors(cfg), weights_only():
        runner = build_runner(cfg)
        if args.show or args.show_dir is not None:
            make_legible(runner.visualizer)
        if args.out is not None:
            if package_of(cfg) == 'mmdet':
                from mmdet.evaluation import DumpDetResults as Dump
            else:
                Dump = DumpPredictions
            runner.test_evaluator.metrics.append(Dump(out_file_path=args.out))
        if args.fuse_conv_bn:
            # The file has the average as its weights; the hook would swap them with others, which have norms.
            runner.hooks[:] = [hook for hook in runner.hooks if not isinstance(hook, EMAHook)]
            runner.register_hook(FuseHook())
        runner.test()
    if args.show_dir is not None:
        print_log(f'Pictures are in {os.path.abspath(args.show_dir)}', logger='current')


if __name__ == '__main__':
    main()
