"""What holds for every test: no socket leaves this machine, and in which order they run."""

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from powermean.importing import uncollected
from rollout.own_folder import remove_abandoned

PHASES = ("shared", "alone")  # of `make test`: see tools/run_tests.py

# More threads than cores only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell starts background jobs with Ctrl-C ignored, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, and no verdict on the speed of a busy machine. `make fast` takes the second.
for profile, examples in {"powermean": 40, "fast": 5}.items():
    settings.register_profile(
        profile,
        deadline=None,
        derandomize=True,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("powermean")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--phase",
        choices=PHASES,
        help="what may run beside other tests (shared), or what is marked `alone`; never `long` ones",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Both phases of `make test` get the same options, but each has a report of its own."""
    report = config.getoption("xmlpath", None)
    if report is not None and config.getoption("phase") == "alone":
        config.option.xmlpath = str(Path(report).with_stem(f"{Path(report).stem}-alone"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """It is mostly imports."""
    with uncollected():
        return (yield)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Few files have a test that is marked `alone`: that phase imports nothing for others."""
    if config.getoption("phase") != "alone":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.alone" in file.read_text() for file in files) else True


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """A failure in a quick test should not wait for the slow ones, as all that start vLLM are.

    In the run of all that may run beside others, whole services come first: they mostly wait, and last
    longest. The other way round single workers would be left with them at the end.
    """
    for item in items:
        if item.get_closest_marker("vllm") is not None or item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.slow)  # before `-m` chooses
    yield
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    if (phase := config.getoption("phase")) is not None:
        long = [item.get_closest_marker("long") is not None for item in items]
        alone = [item.get_closest_marker("alone") is not None for item in items]
        of_phase = [(a == (phase == "alone")) and not b for a, b in zip(alone, long, strict=True)]
        config.hook.pytest_deselected(items=[i for i, here in zip(items, of_phase, strict=True) if not here])
        items[:] = [i for i, here in zip(items, of_phase, strict=True) if here]
    if phase == "shared":
        items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Tests wait for the processes that they have started, whole services for most of the time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    return (os.cpu_count() or 1) + (2 if config.getoption("phase") == "shared" else 1)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector would look at a million objects again and again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extensions tell of objects that they find alive at the process's end


@pytest.fixture(autouse=True)
def _no_log_after_the_test() -> Iterator[None]:
    """Programs that a test runs in this process set logging up; later tests would read what they log."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
        root.removeHandler(handler)
        root.setLevel(logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def _services_of_tests_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands find no service that a person runs here, and a person's commands find none of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_folders_of_killed_engines() -> Iterator[None]:
    """Some tests kill rollout services, whose folders are otherwise removed by the next service."""
    yield
    remove_abandoned()
