import json

import pytest

from tests.tvmquant.allocation.test_allocate import layer, network, omegas
from tvmquant.allocation import Plan, allocate
from tvmquant.bit_choice import W4A8, W8A8
from tvmquant.errors import AllocationError, DataError

FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def plan():
    layers = network(3)
    allocation = allocate(layers, omegas(layers), size="0.8x")
    return Plan.from_allocation(
        allocation, model="net", fingerprint=FINGERPRINT, budgets={"size": "0.8x"}
    )


def edited(plan, path, change):
    content = json.loads(plan.model_dump_json())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_plan_round_trips(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    plan.check(network(3), FINGERPRINT)
    assert not list(tmp_path.glob(".*"))


def test_a_plan_is_edited_by_hand(plan, tmp_path):
    def change(content):
        content["layers"]["l1"] = {"choice": " W4A8 "}
        content["layers"]["l2"]["choice"] = "w8a8"

    read = Plan.load(edited(plan, tmp_path / "plan.json", change))
    read.check(network(3), FINGERPRINT)
    assert read.choices["l1"] == W4A8
    assert read.choices["l2"] == W8A8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["layers"]["l1"].update(choice="int4"), r"layers\.l1\.choice = 'int4'.*w4a8"),
        (lambda c: c["layers"]["l1"].update(choice="w0a8"), r"layers\.l1\.choice = 'w0a8'.*1 to 8"),
        (lambda c: c.update(schema_version=7), "schema_version = 7"),
        (lambda c: c.pop("layers"), "layers: Field required"),
        (lambda c: c["layers"]["l1"].update(bits=4), r"layers\.l1\.bits = 4"),
    ],
)
def test_damage_is_named(plan, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        Plan.load(edited(plan, tmp_path / "plan.json", change))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (network(2), "names the layer 'l2', which the model has not"),
        (network(4), "no choice for 1 layers: l3"),
        (
            [*network(2), layer("l2", op="depthwise", groupable=False)],
            r"'l2' \(depthwise\) w4a8g32, .* no kernel; expected weights of 1 to 8 bits, without",
        ),
    ],
)
def test_a_plan_for_another_model_is_refused(plan, layers, message):
    forced = plan.model_copy(
        update={"layers": {**plan.layers, "l2": plan.layers["l2"].model_copy(
            update={"choice": "w4a8g32"})}}
    )  # fmt: skip
    with pytest.raises(AllocationError, match=message):
        forced.check(layers, FINGERPRINT)


def test_layers_of_the_same_names_do_not_suffice(plan):
    with pytest.raises(AllocationError, match=r"made for another model .'net', fingerprint"):
        plan.check(network(3), "fedcba")


def test_tied_layers_need_one_width(plan, tmp_path):
    layers = [layer("l0", group="g"), layer("l1", group="g"), layer("l2")]
    read = Plan.load(
        edited(plan, tmp_path / "plan.json", lambda c: c["layers"]["l1"].update(choice="w4a4"))
    )
    with pytest.raises(AllocationError, match=r"'l0' w.a8 and 'l1' w4a4, but they read the same"):
        read.check(layers, FINGERPRINT)


def test_what_the_user_pinned_is_locked(tmp_path):
    layers = network(3)
    allocation = allocate(layers, omegas(layers), pinned={"l1": W4A8})
    plan = Plan.from_allocation(allocation, model="net", fingerprint=FINGERPRINT)
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert [name for name, item in read.layers.items() if item.locked] == ["l1"]
    assert read.choices == allocation.choices


def test_a_misspelt_layer_is_recognised(plan):
    layers = {**plan.layers, "l22": plan.layers["l2"]}
    with pytest.raises(AllocationError, match=r"'l22', which the model has not; did you mean 'l2'"):
        plan.model_copy(update={"layers": layers}).check(network(3), FINGERPRINT)
