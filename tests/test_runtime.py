"""Device, seeds, number format; what only a GPU can show is marked and skipped with its reason."""

import random
import signal
import threading

import numpy as np
import pytest
import torch

from semigen_lib import runtime
from semigen_lib.runtime import (
    DEVICES,
    PRECISIONS,
    autocast,
    is_out_of_memory,
    keep_memory,
    pick_device,
    rng_state,
    seed_everything,
    set_rng_state,
    signals_noted,
)
from semigen_lib.training import train, training_step

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_auto_takes_what_there_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device().type == "cuda" and pick_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "tpu", "", "CPU"])
def test_device_refused_in_one_line(name, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"\Adevice: expected .*, got [^\n]*\Z"):
        pick_device(name)


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_seed_seeds_all_three_generators() -> None:
    seed_everything(5)
    first = draws()
    seed_everything(5)
    assert draws() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_seed_refused_in_one_line(seed) -> None:
    with pytest.raises(ValueError, match=r"\Aseed: expected .*, got [^\n]*\Z"):
        seed_everything(seed)


def test_largest_seeds_are_accepted() -> None:
    seed_everything(2**32 - 1)
    seed_everything(0)


def test_states_of_all_three_generators_come_back() -> None:
    random.gauss(0, 1), np.random.randn()  # each keeps a second number for later
    state = rng_state()
    first = draws(), torch.randn(4), random.gauss(0, 1), np.random.randn()
    torch.randn(100), random.gauss(0, 1), np.random.randn(3)
    set_rng_state(state)
    again = draws(), torch.randn(4), random.gauss(0, 1), np.random.randn()
    assert again[0] == first[0] and torch.equal(again[1], first[1]) and again[2:] == first[2:]
    assert all(tensor.dtype == torch.uint8 for tensor in state.values())


def test_generator_state_of_the_current_gpu(monkeypatch) -> None:
    """On a machine with a CUDA device, here played by a list."""
    states = [torch.tensor([1], dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", states.append)
    state = rng_state()
    assert set(state) == {"rng.cpu", "rng.cuda", "rng.python", "rng.numpy"}
    set_rng_state(state)
    assert len(states) == 2 and states[1] is states[0]
    del state["rng.cuda"]  # the run was saved on a machine without one
    set_rng_state(state)
    assert len(states) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_waits_until_the_work_is_done(number, monkeypatch) -> None:
    heard, before = [], signal.getsignal(number)
    signal.signal(number, lambda *_: heard.append("obeyed"))
    try:
        with signals_noted() as noted:
            signal.raise_signal(number)
            assert noted == [number] and heard == []
            signal.raise_signal(number)  # whoever asks twice is in a hurry
            assert noted == [number] and heard == ["obeyed"]
        assert heard == ["obeyed", "obeyed"]
        with pytest.raises(ValueError), signals_noted():
            signal.raise_signal(number)
            raise ValueError
        assert heard == ["obeyed", "obeyed"], "the error says more"
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As Ctrl-C is in what a script starts with "&": it must not end a run early."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_noted() as noted:
            signal.raise_signal(signal.SIGINT)
        assert noted == [] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_signal_is_noted() -> None:
    def run() -> None:
        with signals_noted() as noted:
            seen.append(noted)

    seen, before = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [[]] and signal.getsignal(signal.SIGINT) is before


def test_what_a_full_memory_says() -> None:
    too_much = "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you"
    for error in (MemoryError(), torch.cuda.OutOfMemoryError(), RuntimeError(too_much)):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes"), ValueError("can't allocate memory"), KeyError("x")):
        assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


def test_memory_is_kept_where_the_c_library_can(monkeypatch) -> None:
    asked = []

    class OldGlibc:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            asked.append((name, value))
            return int(name != -3 or value <= 2**25)

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: OldGlibc)
    assert keep_memory() and asked == [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: object())
    assert not keep_memory()


@pytest.mark.parametrize(
    ("device", "precision", "wanted"),
    [
        ("cpu", "auto", torch.float32),
        ("cpu", "fp32", torch.float32),
        ("cpu", "bf16", torch.bfloat16),
        pytest.param("cuda", "auto", torch.bfloat16, marks=[pytest.mark.gpu, needs_gpu]),
        pytest.param("cuda", "fp32", torch.float32, marks=[pytest.mark.gpu, needs_gpu]),
    ],
)
def test_autocast_chooses_the_format_of_products(device, precision, wanted) -> None:
    ones = torch.ones(2, 2, device=device)
    with autocast(torch.device(device), precision):
        assert (ones @ ones).dtype == wanted
    assert (ones @ ones).dtype == torch.float32


def test_autocast_auto_is_bf16_on_cuda(monkeypatch) -> None:
    asked = {}
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: asked.update(options, kind=kind))
    autocast(torch.device("cuda"), "auto")
    assert asked == {"kind": "cuda", "dtype": torch.bfloat16, "enabled": True}


def test_precision_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"\Aprecision: expected .*, got 'fp16'\Z"):
        autocast(torch.device("cpu"), "fp16")


def test_the_names_that_the_command_line_offers() -> None:
    assert DEVICES == ("auto", "cpu", "cuda") and PRECISIONS == ("auto", "fp32", "bf16")


@pytest.mark.gpu
@needs_gpu
def test_gpu_is_picked() -> None:
    assert pick_device().type == pick_device("cuda").type == "cuda"


@pytest.mark.gpu
@needs_gpu
def test_gpu_step_in_bf16_keeps_weights_and_terms_in_fp32(make_method, tiny_split) -> None:
    from semigen_lib.data import BatchStream

    method = make_method("combined").to("cuda").train()
    batch = BatchStream(tiny_split, batch_size=8, labeled_batch_size=10, device="cuda").at(0)
    terms = training_step(method, batch, method.optimizers(), "auto")
    assert all(term.device.type == "cuda" and term.isfinite() for term in terms.values())
    assert all(p.dtype == torch.float32 for p in method.parameters())


@pytest.mark.gpu
@needs_gpu
def test_gpu_resumes_bit_for_bit_the_generator(make_method, tiny_split, tmp_path) -> None:
    """A resumed run on the GPU draws the noise that the uninterrupted one would have drawn."""
    method = make_method("lsgan").to("cuda")
    train(method, tiny_split, steps=3, progress=False, states=tmp_path)
    after = torch.randn(4, device="cuda")
    again = make_method("lsgan").to("cuda")
    train(again, tiny_split, steps=3, progress=False, states=tmp_path, resume=True)
    assert torch.equal(torch.randn(4, device="cuda"), after)
