"""Plans of several devices: what each holds is divided or not, and what is exchanged takes time."""

import json

import pytest
from test_plan import LENGTHS, SHAPE, T4
from transformers import BertConfig
from typer.testing import CliRunner

from snugtune.cli import app
from snugtune.config import make_config
from snugtune.errors import UserInputError
from snugtune.memory.fleet import GATHERED, ONE_DEVICE, Fleet, Units, fleet_of
from snugtune.memory.trace import STATE, WEIGHTS
from snugtune.train.planning import plan_devices


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(**SHAPE).save_pretrained(folder)
    return str(folder)


def plan(bert, fleet, **settings):
    config = make_config({"train": "", "model": bert, **settings})
    return plan_devices(config, 5, [T4], lengths=LENGTHS, fleet=fleet)[0]


def test_whole_weights_take_as_much_on_each_and_share_the_work(bert):
    one, four = plan(bert, ONE_DEVICE), plan(bert, Fleet(4))
    assert four.micro_batch == 8  # of a step of 32
    assert four.composition[WEIGHTS] == one.composition[WEIGHTS]
    assert one.time_s / 4 < four.time_s < one.time_s
    assert 0 < four.exchange_s < four.time_s
    assert four.price.usd_per_hour == pytest.approx(4 * one.price.usd_per_hour)
    assert one.exchange_s == 0


def test_divided_weights_are_a_share_and_what_is_gathered(bert):
    whole, divided = plan(bert, Fleet(4), method="full"), plan(bert, Fleet(4, sharded=True), method="full")
    for part in (WEIGHTS, STATE):
        assert divided.composition[part] == pytest.approx(whole.composition[part] / 4, rel=1e-3)
    # Embeddings and head, and two of three layers, in float32.
    layer = 4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
    rest = (20_000 + 512 + 2 + 2) * 256 + 256 * 256 + 256 + 256 * 5 + 5
    assert divided.composition[GATHERED] * 2**30 == pytest.approx(4 * (2 * layer + rest), rel=1e-3)
    assert sum(divided.composition.values()) == pytest.approx(divided.predicted_peak_gib)
    assert divided.predicted_peak_gib < whole.predicted_peak_gib
    json.dumps(divided.as_dict(), allow_nan=False)


def test_more_devices_hold_less_each_and_a_slower_link_takes_longer(bert):
    two, eight = (plan(bert, Fleet(n, sharded=True), method="full") for n in (2, 8))
    assert eight.predicted_peak_gib < two.predicted_peak_gib
    slow = plan(bert, Fleet(2, sharded=True, link_gb_s=0.1), method="full")
    assert slow.exchange_s > two.exchange_s
    assert slow.time_s > two.time_s


def test_the_ring():
    assert Fleet(2, link_gb_s=1.0).exchange_s(0, 1e9) == pytest.approx((0, 1.0))
    assert Fleet(4, sharded=True, link_gb_s=1.0).exchange_s(1e9, 1e9) == pytest.approx((0.75, 0.75))
    assert Units(10, 30, 5).gathered == 25
    assert Units(10, 10, 5).gathered == 15


def test_what_the_user_asks_for(bert):
    assert fleet_of(1, "full") == ONE_DEVICE
    assert fleet_of(4, "full", 2.0) == Fleet(4, sharded=True, link_gb_s=2.0)
    for devices, link in ((0, 1.0), (2, 0.0)):
        with pytest.raises(UserInputError, match="must be"):
            fleet_of(devices, "none", link)
    told = CliRunner().invoke(
        app, ["plan", "--model", bert, "--labels", "5", "--rows", "50", "--gpu", "t4", "--devices", "2"]
    )
    assert told.exit_code == 0, told.output
    assert "2 x t4" in told.output
    assert "wait for each other" in " ".join(told.output.split())
