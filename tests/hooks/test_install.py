"""Putting `init=` into timm and taking it out again."""

import os
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import timm
import timm.models._builder as builder
import timm.models._factory as factory
import torch
from name_hash import is_name_hashed, name_hash_values

import hf_paraminit
from hf_paraminit import hooks
from hf_paraminit.hooks import install, patched, uninstall
from hf_paraminit.hooks.patching import Change, HostPatch, Replacement
from hf_paraminit.hooks.timm import create_model, plan_changes

ROOT = Path(hf_paraminit.__file__).parents[1]
PLACES = [(factory, "_resolve_model_source"), (factory, "model_entrypoint"), (builder, "load_pretrained")]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    install()
    yield
    uninstall()
    assert not any(hasattr(function, "__wrapped__") for function in functions())
    install()


def functions() -> list[object]:
    return [getattr(module, name) for module, name in PLACES]


def run(code: str, **environment: str) -> str:
    """Run code in a fresh process that can import the package and the test helpers; its output."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_install_and_uninstall_are_exact_inverses() -> None:
    installed = functions()
    install()
    assert functions() == installed
    uninstall()
    originals = functions()
    assert all(function.__module__.startswith("timm.") for function in originals)
    assert not any(hasattr(function, "__wrapped__") for function in originals)
    uninstall()
    assert functions() == originals
    with pytest.raises(TypeError, match="init"):
        timm.create_model("test_resnet", init=name_hash_values)
    for _ in range(3):
        install()
        assert all(new is not old for new, old in zip(functions(), originals, strict=True))
        assert [function.__wrapped__ for function in functions()] == originals
        uninstall()
        assert all(new is old for new, old in zip(functions(), originals, strict=True))


def test_patched_scopes_the_hook_and_nests() -> None:
    uninstall()
    originals = functions()
    with patched():
        with patched():
            assert functions() != originals
        assert is_name_hashed(timm.create_model("test_resnet", init=name_hash_values).fc.bias, "fc.bias")
    assert functions() == originals
    with pytest.raises(ZeroDivisionError), patched():
        raise ZeroDivisionError
    assert functions() == originals
    install()
    installed = functions()
    with patched():
        pass
    assert functions() == installed


def test_create_model_works_without_the_hook_and_equals_it() -> None:
    torch.manual_seed(1)
    hooked = timm.create_model("test_vit", init=name_hash_values, num_classes=7)
    uninstall()
    originals = functions()
    torch.manual_seed(1)
    own = create_model("test_vit", init=name_hash_values, num_classes=7)
    assert functions() == originals
    for (name, left), right in zip(hooked.state_dict().items(), own.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert own._hf_paraminit.predicted == hooked._hf_paraminit.predicted
    assert own._model_args == hooked._model_args


def test_threads_install_once_and_build_at_the_same_time() -> None:
    uninstall()
    originals = functions()
    barrier = threading.Barrier(8)
    faults: list[BaseException] = []

    def work(index: int) -> None:
        try:
            barrier.wait()
            model = create_model("test_resnet", init=name_hash_values) if index % 2 else None
            install()
            assert model is None or is_name_hashed(model.fc.bias, "fc.bias")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert [function.__wrapped__ for function in functions()] == originals
    uninstall()
    assert functions() == originals


def test_a_replacement_made_by_somebody_else_on_top_of_ours_stays() -> None:
    module = types.ModuleType("host")
    module.function = lambda: "host"
    change = Replacement.of(module, "function", lambda original: lambda: "ours")
    change.apply()
    module.function = theirs = lambda: "theirs"
    change.revert()
    assert module.function is theirs


def test_hosts_are_patched_when_they_are_imported_later() -> None:
    code = """
    import sys, inspect
    meta_path = list(sys.meta_path)
    import hf_paraminit
    from hf_paraminit.hooks import PATCHES, install, uninstall
    assert len(sys.meta_path) == len(meta_path) + len(PATCHES) and "timm" not in sys.modules
    install()
    assert len(sys.meta_path) == len(meta_path) + len(PATCHES)
    uninstall()
    assert sys.meta_path == meta_path
    install()
    import timm, name_hash
    assert len(sys.meta_path) == len(meta_path) + len(PATCHES) - 2  # the two for timm have done their work
    import timm.models as models, timm.models._factory as factory
    assert type(models.__loader__).__name__ == "SourceFileLoader" and "exec_module" not in vars(models.__loader__)
    assert "create_model" in inspect.getsource(models)
    model = timm.create_model("test_resnet", init=name_hash.name_hash_values)
    assert name_hash.is_name_hashed(model.fc.bias, "fc.bias")
    uninstall()
    assert not hasattr(factory.model_entrypoint, "__wrapped__")
    print("ok")
    """
    assert run(code) == "ok"


def test_uninstalled_before_the_host_is_imported() -> None:
    code = """
    import hf_paraminit
    from hf_paraminit.hooks import uninstall
    uninstall()
    import timm.models._factory as factory
    print(hasattr(factory.model_entrypoint, "__wrapped__"))
    """
    assert run(code) == "False"


def test_names_imported_from_timm_before_the_package_work() -> None:
    code = """
    from functools import partial
    from timm import create_model
    from timm.models import create_model as second
    third = partial(create_model, "test_resnet")
    import hf_paraminit
    from name_hash import is_name_hashed, name_hash_values
    for build in (partial(create_model, "test_resnet"), partial(second, "test_resnet"), third):
        assert is_name_hashed(build(init=name_hash_values).fc.bias, "fc.bias")
    print("ok")
    """
    assert run(code) == "ok"


@pytest.mark.parametrize(("value", "wrapped"), [("1", "False"), ("true", "False"), ("0", "True"), ("", "True")])
def test_import_is_inert_when_disabled(value: str, wrapped: str) -> None:
    code = """
    import sys
    before = list(sys.meta_path)
    import hf_paraminit
    print(sys.meta_path != before)
    """
    assert run(code, HF_PARAMINIT_DISABLE=value) == wrapped


# A timm that is organised in another way


@pytest.fixture
def fallback() -> Iterator[HostPatch]:
    """A patch that finds `create_model` no longer looking its helpers up, as after a change in timm."""

    def plan(models: types.ModuleType) -> Sequence[Change]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("hf_paraminit.hooks.timm._looks_helpers_up", lambda factory: False)
            return plan_changes(models)

    uninstall()
    patch = HostPatch("timm.models", plan)
    yield patch
    patch.uninstall()
    uninstall()


def test_fallback_warns_once_and_is_undone_exactly(fallback: HostPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("users_module")
    mine.build = original = timm.create_model
    monkeypatch.setitem(sys.modules, "users_module", mine)
    with pytest.warns(UserWarning, match="builds models in another way") as caught:
        fallback.install()
    fallback.install()
    assert len(caught) == 1
    for build in (timm.create_model, timm.models.create_model, factory.create_model, mine.build):
        assert build is not original
        assert is_name_hashed(build("test_resnet", init=name_hash_values).fc.bias, "fc.bias")
    fallback.uninstall()
    assert timm.create_model is timm.models.create_model is factory.create_model is mine.build is original
    assert not hasattr(builder.load_pretrained, "__wrapped__")


@pytest.mark.filterwarnings("ignore:This timm release")
def test_fallback_gives_the_same_models(fallback: HostPatch, tmp_path: Path) -> None:
    reference = timm.create_model("test_resnet", num_classes=5)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    calls = {
        "plain": {},
        "random": {"init": name_hash_values},
        "head": {"init": name_hash_values, "pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 3},
    }
    hooked = {}
    install()
    for label, arguments in calls.items():
        torch.manual_seed(2)
        hooked[label] = timm.create_model("test_resnet", **arguments)
    uninstall()
    with fallback.scoped():
        for label, arguments in calls.items():
            torch.manual_seed(2)
            model = timm.create_model("test_resnet", **arguments)
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, hooked[label].state_dict()[name]), (label, name)
            assert model._model_args == hooked[label]._model_args
        with pytest.warns(UserWarning, match="loaded over the predicted values"):
            model = timm.create_model(
                "test_resnet", checkpoint_path=tmp_path / "weights.pth", init=name_hash_values, num_classes=5
            )
        assert torch.equal(model.fc.bias, reference.fc.bias)


def test_fallback_without_the_known_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall()
    for name in (factory.__name__, builder.__name__):
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(UserWarning, match="builds models in another way"):
        changes = plan_changes(timm.models)
    assert [type(change).__name__ for change in changes] == ["Rebinding"]


@pytest.mark.parametrize("change", ["renamed helper", "other arguments", "inlined helper", "moved function", "present"])
def test_version_guard(change: str) -> None:
    fake = types.ModuleType("timm.models._factory")
    source = """
def _resolve_model_source(model_name, pretrained_cfg, kwargs, cache_dir=None): ...
def model_entrypoint(model_name): ...
def create_model(model_name, **kwargs):
    _resolve_model_source(model_name, None, kwargs)
    return model_entrypoint(model_name)()
"""
    changed = {
        "renamed helper": source.replace("_resolve_model_source", "_resolve_source"),
        "other arguments": source.replace("pretrained_cfg, kwargs, cache_dir", "options, cache_dir"),
        "inlined helper": source.replace("return model_entrypoint(model_name)()", "return None"),
        "moved function": source.replace("def create_model", "def build_model"),
        "present": source,
    }
    exec(changed[change], fake.__dict__)
    assert hooks.timm._looks_helpers_up(fake) == (change == "present")
