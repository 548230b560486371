from hf_paraminit.resizing.stacks import stacks


def test_layers_are_stacked_by_number() -> None:
    names = [f"blocks.{index}.norm.weight" for index in (10, 2, 0)]
    assert stacks(names) == {"blocks.*.norm.weight": [names[2], names[1], names[0]]}


def test_stages_stay_apart_and_single_names_alone() -> None:
    names = ["stages.0.blocks.0.w", "stages.0.blocks.1.w", "stages.1.blocks.0.w", "head.weight", "conv1.weight"]
    assert list(stacks(names).values()) == [names[:2], names[2:3], ["head.weight"], ["conv1.weight"]]


def test_a_number_at_the_start_counts() -> None:
    assert stacks(["0.weight", "1.weight"]) == {"*.weight": ["0.weight", "1.weight"]}
