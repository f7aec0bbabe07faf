"""Banks: the same features from device, host memory and memory map."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import WorkError
from pipeline.features import bank as bank_module
from pipeline.features.bank import choose_residence, make_bank
from pipeline.features.memory import free_host_memory
from tests.test_features import MADE, make_store

CPU = torch.device("cpu")
N = 23
RESIDENCES: tuple[Literal["device", "host", "mmap"], ...] = ("device", "host", "mmap")
Filled = namedtuple("Filled", "store values")


def make_filled(folder: Path, shape: tuple[int, ...], dtype: str, bad: dict[int, str] | None = None) -> Filled:
    """A store of N images in shards of 4 and its features [N, …]."""
    store = make_store(folder, N, dtype=dtype)
    values = torch.randn(N, *shape).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    for shard in range(store.n_shards):
        positions = store.positions(shard)
        here = {i: error for i, error in (bad or {}).items() if i in positions}
        store.write_shard(shard, values[positions.start : positions.stop].clone(), here, MADE)
    return Filled(store, values)


@pytest.fixture(scope="module", params=[(dtype, shape) for dtype in ("bf16", "fp32") for shape in [(6,), (5, 3)]], ids=str)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    dtype, shape = request.param
    return make_filled(tmp_path_factory.mktemp("store"), shape, dtype)


@pytest.mark.parametrize("residence", RESIDENCES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(data=st.data())
def test_every_residence_gives_the_stored_features(filled: Filled, residence: str, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=40))
    bank = make_bank(filled.store, positions, CPU, residence)  # type: ignore[arg-type]
    indices = torch.tensor(data.draw(st.lists(st.integers(0, len(positions) - 1), max_size=20)), dtype=torch.int64)
    got: Tensor = bank.gather(indices)
    assert got.dtype == filled.values.dtype and len(bank) == len(positions) and bank.residence == residence
    assert torch.equal(got, filled.values[np.asarray(positions, dtype=np.int64)][indices])


@pytest.mark.parametrize("residence", RESIDENCES)
def test_a_batch_is_the_callers_own(filled: Filled, residence: Literal["device", "host", "mmap"]) -> None:
    bank = make_bank(filled.store, range(N), CPU, residence)
    bank.gather(torch.arange(N)).zero_()
    assert torch.equal(bank.gather(torch.arange(N)), filled.values)


def test_large_features_are_read_in_several_chunks(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "CHUNK_BYTES", 50)
    bank = make_bank(filled.store, range(N), CPU, "host")
    assert torch.equal(bank.gather(torch.arange(N)), filled.values)


def test_an_image_without_features_is_refused(tmp_path: Path) -> None:
    store = make_filled(tmp_path, (2,), "fp32", bad={5: "bad"}).store
    with pytest.raises(ValueError, match="position 5"):
        make_bank(store, [4, 5], CPU)
    assert len(make_bank(store, [4, 6], CPU)) == 2


@pytest.mark.parametrize("position", [-1, N])
def test_a_position_outside_the_store_is_refused(filled: Filled, position: int) -> None:
    with pytest.raises(ValueError, match=str(position)):
        make_bank(filled.store, [0, position], CPU)


def test_features_that_do_not_fit_name_the_setting(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\ntraceback of the allocator")

    monkeypatch.setattr(bank_module._Rows, "empty", full)
    with pytest.raises(WorkError, match=r"resources\.residence=mmap"):
        make_bank(filled.store, range(N), CPU, "host")


# ---------------------------------------------------------------- auto
@pytest.mark.parametrize(
    ("on_gpu", "on_host", "expected"),
    [(100, 100, "device"), (16, 100, "host"), (16, 32, "host"), (16, 26, "mmap"), (0, 0, "mmap")],
)
def test_auto_takes_the_first_memory_with_room(monkeypatch: pytest.MonkeyPatch, on_gpu: int, on_host: int, expected: str) -> None:
    """13 units of features: they need 13 / 0.6 on the GPU, and pinned, as a power of two, 16 / 0.6 on the host."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (on_gpu, 0))
    monkeypatch.setattr(bank_module, "free_host_memory", lambda: on_host)
    assert choose_residence(13, torch.device("cuda")) == expected


@pytest.mark.parametrize(("on_host", "expected"), [(100, "device"), (20, "mmap")])
def test_auto_on_a_cpu_knows_only_host_memory(monkeypatch: pytest.MonkeyPatch, on_host: int, expected: str) -> None:
    monkeypatch.setattr(bank_module, "free_host_memory", lambda: on_host)
    assert choose_residence(13, CPU) == expected


def test_a_small_bank_is_on_the_device(filled: Filled) -> None:
    assert make_bank(filled.store, range(N), CPU).residence == "device"


# ---------------------------------------------------------------- free memory
def machine(folder: Path, groups: str, files: dict[str, str]) -> int:
    """Free memory of a made-up machine with 1000 KiB available."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    (folder / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(content)
    return free_host_memory(folder / "proc", folder / "groups")


STAT = "anon 5\ninactive_file 100\nactive_file 50\ntotal_inactive_file 100\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 1000 << 10),
        ("0::/job/step\n", {"job/memory.max": "max", "job/memory.current": "1", "job/memory.stat": STAT}, 1000 << 10),
        ("0::/job/step\n", {"job/memory.max": "900", "job/memory.current": "400", "job/memory.stat": STAT}, 650),
        ("0::/job\n", {"job/memory.max": "10", "job/memory.current": "400", "job/memory.stat": ""}, 0),
        (
            "5:cpu,memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "900",
                "memory/job/memory.usage_in_bytes": "400",
                "memory/job/memory.stat": STAT,
            },
            600,
        ),
    ],
    ids=["no groups", "no limit", "limit of the job around the step", "over the limit", "version 1"],
)
def test_free_memory_heeds_slurms_limit(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert machine(tmp_path, groups, files) == expected


def test_free_memory_of_this_machine_is_a_number(tmp_path: Path) -> None:
    assert free_host_memory() >= 0 and free_host_memory(tmp_path, tmp_path) > 0


# ---------------------------------------------------------------- a GPU's ways, without one
def test_rows_are_copied_one_by_one_from_pinned_memory(filled: Filled) -> None:
    """The path to a GPU, with a device that is only named otherwise: `meta` takes copies and keeps nothing."""
    bank = bank_module.TensorBank(filled.values, torch.device("meta"), "host")
    got = bank.gather(torch.tensor([3, 1]))
    assert got.shape == (2, *filled.values.shape[1:]) and got.dtype == filled.values.dtype
