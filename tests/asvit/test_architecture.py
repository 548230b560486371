"""Architecture strings: canonical form, counts, and what is said about malformed ones."""

import asvit_goldens
import pytest

from hf_paraminit.asvit.architecture import BASE, LARGE, SEED, SMALL, Architecture
from hf_paraminit.asvit.errors import ArchitectureError
from hf_paraminit.asvit.space import SearchSpace

GOOD = "8,2,3|4,1,2|4,1,4|4,1,6|32"
# String, parameters without and with position embedding, GMACs at 224 (specification, section 1).
PUBLISHED = (
    (SEED, 2_319_624, 2_419_976, 0.4916),
    (SMALL, 28_775_328, 29_051_296, 5.132),
    (BASE, 52_258_652, 52_622_428, 8.754),
    (LARGE, 87_580_820, 88_145_300, 22.358),
)


def test_the_canonical_form_is_a_fixed_point_and_prints_every_field() -> None:
    arch = Architecture.parse(GOOD)
    assert arch.canonical == SEED == str(arch)
    assert Architecture.parse(arch.canonical) == arch
    assert arch.topology == GOOD
    assert Architecture.parse(" 8, 2,3|4,1,2|4,1,4|4,1,6| 32 ,32") == arch


@pytest.mark.parametrize(("text", "params", "with_pos_embed", "gmacs"), PUBLISHED)
def test_published_sizes(text: str, params: int, with_pos_embed: int, gmacs: float) -> None:
    arch = Architecture.parse(text)
    assert arch.num_params() == params
    assert arch.num_params(pos_embed_img_size=224) == with_pos_embed
    assert arch.macs() / 1e9 == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize("case", asvit_goldens.CASES)
def test_recorded_counts(case: str) -> None:
    record = asvit_goldens.read(case)
    arch = Architecture.parse(record["arch"])
    assert arch.canonical == record["tostr"]
    assert [list(arch.dims), list(arch.inner_dims)] == [record["dims"], record["attn_inner"]]
    assert list(arch.stage_heads) == record["heads"]
    assert arch.num_params(record["num_classes"]) == record["n_params"]
    assert arch.macs(record["img_size"], record["num_classes"]) == record["profiler_flops"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 1 parts"),
        ("8,2,3|4,1,2|4,1,4|32", "found 4 parts"),
        ("8,2|4,1,2|4,1,4|4,1,6|32", "stage 1 '8,2' needs 3 or 4 numbers"),
        ("8,2,3,1,1|4,1,2|4,1,4|4,1,6|32", "stage 1 '8,2,3,1,1' needs 3 or 4 numbers"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,8,1", "head '32,8,1' needs 1 or 2 numbers"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|", "H (heads) of head must be a whole number, found ''"),
        ("x,2,3|4,1,2|4,1,4|4,1,6|32", "K (patch kernel) of stage 1 must be a whole number, found 'x'"),
        ("8,2.5,3|4,1,2|4,1,4|4,1,6|32", "S (splits) of stage 1"),
        ("8,2,3|4,1,-2|4,1,4|4,1,6|32", "E (expansion) of stage 2"),
        ("8,2,3,?|4,1,2,1|4,1,4,1|4,1,6,1|32", "L (depth) of stage 1"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,w", "W (width) of head"),
        ("8,2,3,2|4,1,2|4,1,4|4,1,6|32", "only stages 1 give L (depth)"),
        ("3,2,3|4,1,2|4,1,4|4,1,6|32", "K (patch kernel) of stage 1 must be at least 4, found 3"),
        ("8,2,3|4,1,2|1,1,4|4,1,6|32", "K (patch kernel) of stage 3 must be at least 2, found 1"),
        ("8,0,3|4,1,2|4,1,4|4,1,6|32", "S (splits) of stage 1 must be at least 1, found 0"),
        ("8,2,0|4,1,2|4,1,4|4,1,6|32", "E (expansion) of stage 1 must be at least 1"),
        ("8,2,3,0|4,1,2,1|4,1,4,1|4,1,6,1|32", "L (depth) of stage 1 must be at least 1"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|4", "H (heads) must be at least 8"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,0", "W (width) must be at least 1"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|64,7", "stage 1 has 8 heads but width 7, which leaves 0 channels"),
    ],
)
def test_malformed_strings_name_the_field(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError) as error:
        Architecture.parse(text)
    assert message in str(error.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ArchitectureError) as error:
        Architecture.parse("a,2,3|4,b,2|4,1|4,1,6|c")
    assert all(part in str(error.value) for part in ("'a'", "'b'", "stage 3 '4,1'", "'c'", "Write K,S,E"))
    with pytest.raises(ArchitectureError, match="written as a string"):
        Architecture.parse(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("img_size", "message"), [(100, "multiple of 32"), (0, "multiple of 32"), (32, "stage 3")])
def test_sizes_that_do_not_divide(img_size: int, message: str) -> None:
    arch = Architecture.parse("8,8,3|4,4,2|4,3,4|4,1,6|32")
    with pytest.raises(ArchitectureError, match=message):
        arch.macs(img_size)


def test_the_space_has_the_published_size_and_order() -> None:
    space = SearchSpace()
    assert len(space) == 4_556_250
    assert [list(values) for values in space.choices] == list(asvit_goldens.read("policy_traces")["space"].values())
    assert space.decode([0] * 12, width=8).canonical == "4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|16,8"
    with pytest.raises(ArchitectureError, match="at least one value for each of K1"):
        SearchSpace(((4,),))
