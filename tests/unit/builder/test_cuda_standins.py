from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from tokenservice.builder.base import require_tools
from tokenservice.builder.cuda_standins import (
    TOOLS,
    Needs,
    c_source,
    layer,
    library_folder,
    parse_needs,
    plan,
    split,
    version_script,
)
from tokenservice.builder.errors import BuildError
from tokenservice.builder.layers import entries_below
from tokenservice.builder.oci import Layer
from tokenservice.builder.store import LayerStore
from tokenservice.builder.unpack import unpack_layer
from tokenservice.builder.wheels import Wheel

DYNAMIC = """ 0x1 (NEEDED)   Shared library: [libcublas.so.13]
 0x1 (NEEDED)   Shared library: [libnccl.so.2]
 0x1 (NEEDED)   Shared library: [libc.so.6]
 0xf (RPATH)    Library rpath: [$ORIGIN/../../nvidia/nccl/lib:$ORIGIN/../../nvidia/cu13/lib:$ORIGIN]
"""
VERSIONS = """  000000: Version: 1  File: libcublas.so.13  Cnt: 1
  0x0010:   Name: libcublas.so.13  Flags: none  Version: 5
  0x0020: Version: 1  File: libc.so.6  Cnt: 1
  0x0030:   Name: GLIBC_2.2.5  Flags: none  Version: 4
"""
UNDEFINED = """                 U cublasCreate_v2@libcublas.so.13
                 U ncclSend
                 U _ZN3c105ErrorE
                 w __gmon_start__
                 U malloc@GLIBC_2.2.5
"""
NEEDS = Needs(
    ("libcublas.so.13", "libnccl.so.2", "libc.so.6"),
    ("../../nvidia/nccl/lib", "../../nvidia/cu13/lib", ""),
    (
        ("cublasCreate_v2", "libcublas.so.13"),
        ("ncclSend", ""),
        ("_ZN3c105ErrorE", ""),
        ("__gmon_start__", ""),
        ("malloc", "GLIBC_2.2.5"),
    ),
    {"libcublas.so.13": "libcublas.so.13", "GLIBC_2.2.5": "libc.so.6"},
)


def test_what_the_tools_say_is_read() -> None:
    assert parse_needs(DYNAMIC, VERSIONS, UNDEFINED) == NEEDS


def test_symbols_go_to_the_library_they_are_of() -> None:
    assert plan([NEEDS], frozenset({"_ZN3c105ErrorE"})) == {
        "libcublas.so.13": {"cublasCreate_v2": "libcublas.so.13"},
        "libnccl.so.2": {"ncclSend": ""},
    }


def test_names_decide_where_versions_do_not() -> None:
    sonames = ("libcusparse.so.12", "libcusparseLt.so.0", "libnvshmem_host.so.3", "libcufile.so.0")
    symbols = tuple(
        (name, "") for name in ("cusparseLtInit", "cusparseCreate", "nvshmem_free", "cuFileOpen", "unknown")
    )
    assert plan([Needs(sonames, (), symbols)], frozenset()) == {
        "libcusparse.so.12": {"cusparseCreate": "", "unknown": ""},
        "libcusparseLt.so.0": {"cusparseLtInit": ""},
        "libnvshmem_host.so.3": {"nvshmem_free": ""},
        "libcufile.so.0": {"cuFileOpen": ""},
    }


def test_driver_runtime_and_profiler_stay_real() -> None:
    sonames = ("libcuda.so.1", "libcudart.so.13", "libcupti.so.13", "libc.so.6", "libtorch_cpu.so")
    assert plan([Needs(sonames, (), (("cudaMalloc", ""), ("cuInit", "")))], frozenset()) == {}


def test_which_wheels_are_never_downloaded() -> None:
    names = ["torch", "triton", "nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-cupti", "cuda-bindings", "numpy"]
    kept, replaced = split([Wheel(name, "1", "", "", 0, "") for name in names])
    assert [wheel.name for wheel in kept] == ["torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti", "numpy"]
    assert [wheel.name for wheel in replaced] == ["triton", "nvidia-cublas", "cuda-bindings"]


def test_the_folder_is_the_last_that_pytorch_names() -> None:
    assert library_folder([Needs((), (), ()), NEEDS]) == "nvidia/cu13/lib"
    with pytest.raises(BuildError, match="looks for no CUDA libraries"):
        library_folder([Needs((), ("",), ())])


def test_version_scripts() -> None:
    assert version_script({"a": "", "b": ""}) == ""
    assert version_script({"b": "V1", "a": "", "c": "V1"}) == "V1 { global: a; b; c; local: *; };\n"
    assert version_script({"b": "V1", "c": "V2"}) == "V1 { global: b; };\nV2 { global: c; local: *; };\n"


SITE = "opt/env/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def torch_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like an unpacked wheel: torch/lib with a library that needs CUDA libraries by version and without."""
    require_tools(TOOLS)
    root = tmp_path_factory.mktemp("torch")
    real, lib = root / "real", root / "tree" / SITE / "torch/lib"
    real.mkdir()
    lib.mkdir(parents=True)

    def gcc(*arguments: str, text: str) -> None:
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *arguments], input=text, text=True, check=True
        )

    (real / "map").write_text("libcublas.so.13 { global: cublasCreate_v2; local: *; };\n")
    gcc(
        "-Wl,-soname,libcublas.so.13", f"-Wl,--version-script={real}/map", "-o", f"{real}/libcublas.so",
        text="int cublasCreate_v2(void) { return 0; }",
    )  # fmt: skip
    gcc("-Wl,-soname,libnccl.so.2", "-o", f"{real}/libnccl.so", text="int ncclSend(void) { return 0; }")
    gcc("-o", f"{lib}/libown.so", text="int own(void) { return 7; }")
    gcc(
        f"-L{real}", f"-L{lib}", "-lcublas", "-lnccl", "-lown", "-Wl,-z,now", "-o", f"{lib}/libtorch_cuda.so",
        "-Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib:$ORIGIN/../../nvidia/cu13/lib:$ORIGIN",
        text="int cublasCreate_v2(void); int ncclSend(void); int own(void);"
        "int cuda(void) { return cublasCreate_v2() + ncclSend(); } int cpu(void) { return own(); }",
    )  # fmt: skip
    return root / "tree"


def test_a_library_that_needs_cuda_is_loaded_and_runs_without(torch_like: Path, tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "store")
    torch = Layer(store.make("torch", lambda: _Entries(torch_like)), "torch 2")
    made = layer(store, torch, ["nvidia-cublas"], SITE)
    for each in (torch, made):
        unpack_layer(store.blob(each.file.digest), tmp_path / "root")
    library = tmp_path / "root" / SITE / "torch/lib/libtorch_cuda.so"
    assert ctypes.CDLL(str(library)).cpu() == 7
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).cuda()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert (
        "libcublas.so.13 is a stand-in without CUDA, for machines without a GPU: cublasCreate_v2 was called"
        in done.stderr
    )
    folder = tmp_path / "root" / SITE / "nvidia/cu13/lib"
    assert sorted(path.name for path in folder.iterdir()) == [
        "CPU-STAND-INS.txt", "libcublas.so.13", "libcublas.so.13.cpu-stand-in", "libnccl.so.2",
        "libnccl.so.2.cpu-stand-in",
    ]  # fmt: skip
    assert "nvidia-cublas" in (folder / "CPU-STAND-INS.txt").read_text()


class _Entries:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> list[object]:
        return list(entries_below(self.root))

    def __exit__(self, *_: object) -> None:
        pass


def test_the_program_text_names_what_was_called() -> None:
    text = c_source("libx.so.1", ["b", "a"])
    assert text.index('stop("a")') < text.index('stop("b")')
    assert "libx.so.1 is a stand-in without CUDA" in text
