"""What test_distributed.py and test_engine/test_fsdp.py run in processes that work together through gloo."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from forked import start_server
from mmengine._strategy import BaseStrategy
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, STRATEGIES
from torch import Tensor, nn

import s6la_mm  # noqa: F401
from s6la_mm.backbones.families import FAMILIES
from s6la_mm.engine.cpu import CPUDistributedDataParallel
from s6la_mm.layers import StateRead, TokenRead

SIZE = 64
# A small network of each family; without drop path and dropout, which draw another random number in every process.
BACKBONES = {family.name: dict(type=family.name, state_dim=4, **family.small) for family in FAMILIES}


class Network(BaseModel):
    """A backbone with a random projection of its outputs as loss: nothing else has parameters."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = MODELS.build(BACKBONES[kind] | options)
        with torch.no_grad():
            for module in self.backbone.modules():
                if isinstance(module, (StateRead, TokenRead)):  # zero at the start: cells would have no gradient
                    nn.init.normal_(module.weight, std=0.1)

    def init_weights(self) -> None:
        """Keeps the weights of the constructor, which strategies would draw again."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        generator = torch.Generator().manual_seed(7)
        outs = self.backbone(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        return dict(loss=sum((out * torch.randn(out.shape[1:], generator=generator)).mean() for out in outs))


def images(number: int, seed: int = 0) -> Tensor:
    """Random images, the same in every process."""
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def start(function: Callable, folder: Path, *args, processes: int = 2) -> list:
    """Runs a function of this module, or another that can be imported, in processes that form a group.

    Args:
        function (Callable): Called with the process's rank and ``args``.
        folder (Path): Where the processes meet and leave their results.

    Returns:
        list: What the function returned in each process.
    """
    start_server()
    arguments = (function, str(folder), processes, args)
    torch.multiprocessing.start_processes(_work, arguments, nprocs=processes, start_method='forkserver')
    return [torch.load(folder / f'result-{rank}.pth', weights_only=True) for rank in range(processes)]


def _work(rank: int, function: Callable, folder: str, processes: int, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(processes), GLOO_SOCKET_IFNAME='lo')
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=processes)
    torch.save(function(rank, *args), f'{folder}/result-{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, by its name in the model that is not wrapped."""
    named = getattr(model, 'module', model).named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def checkpointed_gradients(rank: int) -> dict[str, dict[str, Tensor]]:
    """Gradients of every kind of backbone, with and without recomputation, as DDP averages them; two steps each."""
    results = {}
    for kind in BACKBONES:
        for with_cp in (False, True):
            network = Network(kind, with_cp=with_cp).train()
            model = CPUDistributedDataParallel(network, find_unused_parameters=False, broadcast_buffers=False)
            for _ in range(2):  # DDP finds out in the second one what the first left unused
                model.zero_grad()
                model(images(4)[2 * rank : 2 * rank + 2], mode='loss')['loss'].backward()
            results[f'{kind} {with_cp}'] = gradients(model)
    return results


def accumulated_steps(rank: int, world: int, counts: int) -> dict[str, dict[str, Tensor] | list[bool]]:
    """Two steps of SGD on 4 images each, which ``world`` processes see in ``counts`` parts; then the weights."""
    network = Network('S6LAResNet', norm_eval=True).train()
    plain = world == 1
    model = network if plain else CPUDistributedDataParallel(network, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts)
    wrapper.initialize_count_status(model, 0, 2 * counts)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    part = 4 // (world * counts)
    are_equal, moved = [], []
    for step in range(2):
        batch = images(4, step)[rank * part * counts : (rank + 1) * part * counts]
        for index in range(counts):
            # What BaseModel.train_step does, stopped between the backward pass and the step.
            with wrapper.optim_context(model):
                loss = model(batch[index * part : (index + 1) * part], mode='loss')['loss']
            wrapper.backward(wrapper.scale_loss(loss))
            if not plain:
                are_equal.append(_is_same_everywhere(network.backbone.conv1.weight.grad))
            if wrapper.should_update():
                wrapper.step()
                wrapper.zero_grad()
            moved.append(not torch.equal(before['backbone.conv1.weight'], network.backbone.conv1.weight))
    weights = {name: p.detach() - before[name] for name, p in network.named_parameters()}
    return dict(change=weights, are_equal=are_equal, moved=moved)


def _is_same_everywhere(tensor: Tensor) -> bool:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return all(torch.equal(gathered[0], other) for other in gathered)


def all_steps(rank: int) -> dict:
    """Everything that tests/test_distributed.py looks at, in one start of the processes."""
    return dict(
        checkpointed=checkpointed_gradients(rank), accumulated=accumulated_steps(rank, dist.get_world_size(), 2)
    )


def _build_sharded(work_dir: str, kind: str, optim_wrapper: dict, **model_wrapper) -> BaseStrategy:
    strategy = STRATEGIES.build(
        dict(
            type='S6LAFSDPStrategy',
            work_dir=work_dir,
            experiment_name=kind,
            env_kwargs=dict(launcher='pytorch', randomness=dict(seed=0)),
            log_kwargs=dict(log_level='WARNING'),
            model_wrapper=model_wrapper,
        )
    )
    strategy.prepare(Network(kind), optim_wrapper=copy.deepcopy(optim_wrapper), dispatch_kwargs=dict(max_iters=4))
    return strategy


def _train(model: nn.Module, wrapper: OptimWrapper, rank: int, steps: range) -> list[tuple[float, float]]:
    """The loss and the norm of all gradients of each step."""
    norm = wrapper.message_hub
    numbers = []
    for step in steps:
        batch = dict(inputs=list(images(4, step)[2 * rank : 2 * rank + 2]))
        loss = model.train_step(batch, wrapper)['loss'].item()
        numbers.append((loss, float(norm.get_scalar('train/grad_norm').current())))
    return numbers


def sharded_steps(rank: int, folder: str, kinds: list[str]) -> dict[str, dict]:
    """Four steps with DDP and with FSDP, a checkpoint after two of them, from which another FSDP run goes on."""
    optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=1e-3, norm_type=2)
    )
    results = {}
    for kind in kinds:
        network = Network(kind)
        model = CPUDistributedDataParallel(network, broadcast_buffers=False).train()
        wrapper = build_optim_wrapper(network, copy.deepcopy(optim_wrapper))
        expected = _train(model, wrapper, rank, range(4))

        strategy = _build_sharded(f'{folder}/{kind}', kind, optim_wrapper)
        strategy.model.train()
        numbers = _train(strategy.model, strategy.optim_wrapper, rank, range(2))
        strategy.save_checkpoint(f'{folder}/{kind}.pth', extra_ckpt=dict(meta=dict(iter=2)))
        numbers += _train(strategy.model, strategy.optim_wrapper, rank, range(2, 4))
        dist.barrier()
        resumed = _build_sharded(f'{folder}/{kind}', kind, optim_wrapper)
        resumed.model.train()
        resumed.resume(f'{folder}/{kind}.pth')
        again = _train(resumed.model, resumed.optim_wrapper, rank, range(2, 4))
        for m in (model, strategy.model):
            m.eval()
        with torch.no_grad():
            predicted = [m(images(2), mode='loss')['loss'].item() for m in (model, strategy.model)]
        results[kind] = dict(
            expected=expected,
            numbers=numbers,
            again=again,
            predicted=predicted,
            parameters=[sum(p.numel() for p in m.parameters()) for m in (network, strategy.model)],
            weights=[_digest(network.state_dict()), _digest(_full_state(strategy.model))],
        )
    return results


def _full_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded model as rank 0 saves it; nothing elsewhere."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _digest(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if value.is_floating_point()}


def block_units(rank: int, folder: str) -> str:
    """What happens where each block of a ResNet is a unit of its own."""
    policy = dict(type='s6la_wrap_policy', units=('StateBasicBlock',))
    strategy = _build_sharded(folder, 'S6LAResNet', dict(optimizer=dict(type='SGD', lr=0.1)), auto_wrap_policy=policy)
    try:
        strategy.model(images(2), mode='loss')
    except (RuntimeError, TypeError) as error:
        return str(error)
    return ''


def layer_decay(rank: int, folder: str) -> list[dict[str, float]]:
    """Learning rates with layer-wise decay, of the whole and of the sharded network."""
    optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=1e-3),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    rates = []
    whole = Network('S6LAViT')
    strategy = _build_sharded(folder, 'S6LAViT', optim_wrapper)
    for model, wrapper in (
        (whole, build_optim_wrapper(whole, copy.deepcopy(optim_wrapper))),
        (strategy.model, strategy.optim_wrapper),
    ):
        names = {id(p): name.replace('_fsdp_wrapped_module.', '') for name, p in model.named_parameters()}
        groups = wrapper.optimizer.param_groups
        rates.append({names[id(p)]: group['lr'] for group in groups for p in group['params'] if id(p) in names})
    return rates


def all_sharded_steps(rank: int, folder: str) -> dict:
    """Everything that tests/test_engine/test_fsdp.py looks at, in one start of the processes."""
    return dict(
        steps=sharded_steps(rank, folder, list(BACKBONES)),
        decay=layer_decay(rank, folder),
        blocks=block_units(rank, folder),
    )
