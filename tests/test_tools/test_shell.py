"""The command lines that the shell tools build, recorded by a ``srun`` and a ``python`` that only print them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


def run(tool: str, *args: str, path_first: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    """Run a shell tool without what the caller's environment says of its job."""
    names = ('GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK', 'SRUN_ARGS', 'NNODES', 'NODE_RANK', 'PORT', 'MASTER_ADDR')
    clean = {key: value for key, value in os.environ.items() if key not in names}
    clean['PATH'] = os.pathsep.join([str(path_first or ''), os.environ['PATH']]).lstrip(os.pathsep)
    return subprocess.run(
        ['bash', str(TOOLS / tool), *args], capture_output=True, text=True, env={**clean, **env}, timeout=60
    )


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A folder with a ``srun`` and a ``python`` that print their arguments, one a line."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('srun', 'python'):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (folder / name).chmod(0o755)
    return folder


SLURM = ['-p', 'part', '--job-name=job', '--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4']
OPTION = ('--cfg-options', 'a="[1, 2]"', "b='x y'")


@pytest.mark.parametrize('work_dir', [(), ('my work',)])
def test_slurm_train_command(recorder, work_dir):
    result = run(
        *('slurm_train.sh', 'part', 'job', 'c.py', *work_dir, *OPTION),
        path_first=recorder,
        GPUS='4',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--time 60 --qos=low',
    )
    start = [*SLURM, '--cpus-per-task=3', '--kill-on-bad-exit=1', '--time', '60', '--qos=low', 'python', '-u']
    option = ['--work-dir', *work_dir] if work_dir else []
    command = [str(TOOLS / 'train.py'), 'c.py', *option, '--launcher', 'slurm', *OPTION]
    assert result.stdout.splitlines() == start + command
    assert result.returncode == 0


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A ``srun`` that ends with the statuses in a file, one after the other, and a ``scontrol`` that prints."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    (folder / 'srun').write_text(
        '#!/bin/sh\necho "srun $*"\nstatus=$(head -n 1 "$STATUSES")\nsed -i 1d "$STATUSES"\nexit "$status"\n'
    )
    (folder / 'scontrol').write_text('#!/bin/sh\necho "scontrol $*"\n')
    for name in ('srun', 'scontrol'):
        (folder / name).chmod(0o755)
    return folder


def slurm_train(slurm: Path, statuses: str, **env: str) -> subprocess.CompletedProcess:
    (slurm / 'statuses').write_text(statuses)
    options = ('slurm_train.sh', 'part', 'job', 'c.py', '--resume', 'old.pth')
    return run(*options, path_first=slurm, STATUSES=str(slurm / 'statuses'), REQUEUE_PAUSE='0', GPUS='1', **env)


def test_slurm_starts_a_preempted_training_again(slurm):
    result = slurm_train(slurm, '75\n75\n3\n')
    first, *others = [line for line in result.stdout.splitlines() if line.startswith('srun')]
    assert result.returncode == 3 and len(others) == 2
    assert first.endswith('--resume old.pth')
    assert all(line.endswith('--resume old.pth --resume') for line in others)  # the last one counts: the newest


def test_slurm_requeues_a_batch_job(slurm):
    result = slurm_train(slurm, '75\n0\n', SLURM_JOB_ID='17')
    assert 'scontrol requeue 17' in result.stdout and result.stdout.count('srun ') == 1
    result = slurm_train(slurm, '0\n', SLURM_JOB_ID='17', SLURM_RESTART_COUNT='1')
    assert result.returncode == 0 and '--resume old.pth --resume' in result.stdout


@pytest.mark.parametrize(
    ('statuses', 'env', 'starts'), [('0\n', {}, 1), ('1\n', {}, 1), ('75\n', {'REQUEUES': '0'}, 1)]
)
def test_slurm_does_not_start_again(slurm, statuses, env, starts):
    result = slurm_train(slurm, statuses, **env)
    assert result.stdout.count('srun ') == starts and result.returncode == int(statuses)


def test_dist_train_gives_the_status_of_its_processes(recorder):
    (recorder / 'python').write_text('#!/bin/sh\nprintf 75 > "$S6LA_STATUS_FILE"\nexit 1\n')
    assert run('dist_train.sh', 'c.py', '2', path_first=recorder).returncode == 75
    (recorder / 'python').write_text('#!/bin/sh\nexit 4\n')
    assert run('dist_train.sh', 'c.py', '2', path_first=recorder).returncode == 4


@pytest.mark.parametrize(
    ('gpus', 'env', 'words'),
    [
        ('0', {}, 'GPUS=0'),
        ('two', {}, 'GPUS=two'),
        ('2', {'PORT': '99999'}, 'PORT=99999'),
        ('2', {'NNODES': '2', 'NODE_RANK': '2'}, 'NODE_RANK=2'),
    ],
)
def test_dist_train_refuses_what_cannot_work(recorder, gpus, env, words):
    result = run('dist_train.sh', 'c.py', gpus, path_first=recorder, **env)
    assert result.returncode == 2 and words in result.stderr and not result.stdout


def test_slurm_test_command(recorder):
    result = run(*('slurm_test.sh', 'part', 'job', 'c.py', 'e 1.pth', *OPTION), path_first=recorder, GPUS='4')
    start = [*SLURM, '--cpus-per-task=5', '--kill-on-bad-exit=1', 'python', '-u']
    command = [str(TOOLS / 'test.py'), 'c.py', 'e 1.pth', '--launcher', 'slurm', *OPTION]
    assert result.stdout.splitlines() == start + command


@pytest.mark.parametrize(
    ('env', 'expected'),
    [
        ({}, ['--standalone']),
        (
            {'PORT': '1234'},
            ['--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1', '--master_port=1234'],
        ),
        (
            {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'host'},
            ['--nnodes=2', '--node_rank=1', '--master_addr=host', '--master_port=29500'],
        ),
    ],
)
@pytest.mark.parametrize(('tool', 'files'), [('train', ['c.py']), ('test', ['c.py', 'e 1.pth'])])
def test_dist_command(recorder, tool, files, env, expected):
    result = run(f'dist_{tool}.sh', *files, '2', *OPTION, path_first=recorder, **env)
    start = ['-m', 'torch.distributed.run', *expected, '--nproc_per_node=2']
    command = [str(TOOLS / f'{tool}.py'), *files, '--launcher', 'pytorch', *OPTION]
    assert result.stdout.splitlines() == start + command


@pytest.mark.parametrize('tool', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_shell_tools_say_their_usage(tool):
    result = run(f'{tool}.sh', 'one')
    assert result.returncode == 2 and 'usage:' in result.stderr
