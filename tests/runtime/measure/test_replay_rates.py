import dataclasses
from types import SimpleNamespace

import pytest

from fastblt.models.config import BltConfig
from fastblt.models.presets import preset
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.methods import MethodEntry, register_method
from fastblt.runtime.methods.replay_profile import ReplayError, rate_for

MEASURED = ["ar", "s:4", "s:8", "s:16", "d:8@0.7", "d:8@one", "dv:8@one", "dv:8@0.3", "dv:8@one+partial", "auto"]


@pytest.fixture(scope="module")
def config() -> BltConfig:
    return preset("mid")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "found '', expected paper, or"),
        ("acceptance", "found 'acceptance', expected a number in 0..1"),
        ("acceptance=high", "found 'acceptance=high', expected a number in 0..1"),
        ("acceptance=1.2", "found 'acceptance=1.2', expected a number in 0..1"),
        ("acceptance=-0.1", "found 'acceptance=-0.1'"),
        ("acceptance=nan", "found 'acceptance=nan'"),
        ("steps=0.5", "found 'steps=0.5', expected a number >= 1"),
        ("patch=0", "found 'patch=0', expected a number >= 1"),
        ("patch=inf", "found 'patch=inf'"),
        ("speed=2", "found 'speed=2', expected paper, or"),
        ("papers", "found 'papers', expected paper, or"),
        ("paper,", "found '', expected paper, or"),
        ("acceptance=0.9;steps=2", "found 'acceptance=0.9;steps=2'"),
        ("s:9/acceptance=0.9", "found 's:9/acceptance=0.9', expected acceptance or steps of one of ar, s:4"),
        ("s:8/patch=3", "found 's:8/patch=3', expected acceptance or steps of one of"),
    ],
)
def test_malformed_replay_is_quoted(text: str, named: str) -> None:
    with pytest.raises(ReplayError) as caught:
        ReplayRates.parse(text, MEASURED)
    assert str(caught.value).startswith("--replay: ")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("text", "method", "named"),
    [
        ("steps=2", "s:8", "found no acceptance for s:8, expected acceptance=VALUE or s:8/acceptance=VALUE"),
        ("steps=2", "auto", "found no acceptance for auto"),
        ("paper", "s:5", "found no acceptance for s:5"),
        ("acceptance=0.9", "d:8@0.7", "found no steps for d:8@0.7"),
        ("acceptance=0.9", "dv:8@0.3", "found no steps for dv:8@0.3"),
        ("steps=8", "d:8@0.7", "found steps=8 for d:8@0.7, expected at most 7"),
        ("steps=9", "d:8@0.7+block", "found steps=9 for d:8@0.7+block, expected at most 8"),
        ("patch=9", "ar", "found patch=9, expected at most 8, the longest patch"),
        ("acceptance=0.1", "dv:8@one+partial", "found acceptance=0.1 for dv:8@one+partial, expected at least 0.125"),
    ],
)
def test_replay_that_no_run_can_show_is_refused(config: BltConfig, text: str, method: str, named: str) -> None:
    with pytest.raises(ReplayError) as caught:
        ReplayRates.parse(text, MEASURED).profile(method, config)
    assert named in str(caught.value)


def test_items_for_a_method_win_over_general_ones_and_later_ones_over_earlier(config: BltConfig) -> None:
    text = "s:8/acceptance=0.7, acceptance=0.9,acceptance=0.8,patch=3,patch=2"
    setting = ReplayRates.parse(text, MEASURED)
    found = [setting.profile(method, config) for method in ("s:8", "s:16")]
    assert [profile.acceptance for profile in found] == [0.7, 0.8]
    assert {profile.patch for profile in found} == {2.0}
    assert setting.text == text


def test_patches_have_the_papers_length_unless_given(config: BltConfig) -> None:
    assert ReplayRates.parse("acceptance=0.9", MEASURED).profile("s:8", config).patch == 4.0


def test_paper_gives_each_method_its_figures(config: BltConfig) -> None:
    setting = ReplayRates.parse("paper,s:16/acceptance=0.5", MEASURED)
    profiles = {method: setting.profile(method, config) for method in [*MEASURED, "dv:8@one+partial", "d:16@0.7"]}
    assert {profile.patch for profile in profiles.values()} == {2.05}
    assert profiles["s:8"].acceptance == 0.9114
    assert profiles["s:16"].acceptance == 0.5
    assert profiles["dv:8@one"].acceptance == profiles["dv:8@one+partial"].acceptance == 0.8034
    assert profiles["d:8@0.7"].steps == pytest.approx(2.92, abs=0.01)
    assert profiles["d:16@0.7"].steps == pytest.approx(3.125)
    # 512 bytes, 67 rounds of 6.7 + 1 bytes, one decoder call a round to verify: 109 to draft.
    assert profiles["dv:8@0.3"].steps == pytest.approx(109 / 67)
    assert profiles["auto"].draft_rate == profiles["s:8"].draft_rate
    assert profiles["auto"].block_rate == profiles["dv:8@one"].block_rate


def test_one_step_needs_no_steps_and_ignores_them(config: BltConfig) -> None:
    setting = ReplayRates.parse("acceptance=0.8,steps=3", MEASURED)
    assert setting.profile("dv:8@one", config).steps == setting.profile("d:8@one", config).steps == 1.0


def test_row_before_a_block_drafts_only_where_the_model_does_not_judge_by_it(config: BltConfig) -> None:
    setting = ReplayRates.parse("acceptance=0.8,steps=3", MEASURED)
    drafts = {m: setting.profile(m, config).clean_drafts for m in ("dv:8@one", "dv:8@one+partial", "d:8@0.7", "auto")}
    assert drafts == {"dv:8@one": True, "dv:8@one+partial": False, "d:8@0.7": False, "auto": True}
    partly = dataclasses.replace(config, block_latent="partial")
    assert {setting.profile(m, partly).clean_drafts for m in ("dv:8@one", "auto")} == {False}
    # 1 + a + ... + a^7 = 6.4 there, a + ... + a^8 = 6.4 elsewhere.
    partial = setting.profile("dv:8@one+partial", config).block_rate
    assert sum(partial**power for power in range(8)) == pytest.approx(6.4)
    assert setting.profile("dv:8@one", config).block_rate > partial
    assert (
        setting.profile("dv:8@one+partial+block", config).block_rate == setting.profile("dv:8@one", config).block_rate
    )


def test_longest_patch_of_a_model_without_limit_is_not_bounded(config: BltConfig) -> None:
    patching = dataclasses.replace(config.patching, max_patch_length=None)
    endless = dataclasses.replace(config, patching=patching)
    assert ReplayRates.parse("patch=20", MEASURED).profile("ar", endless).patch_rate == pytest.approx(0.95, abs=1e-6)


@pytest.mark.parametrize(("mean", "count", "rate"), [(0.75, 2, 0.5), (0.0, 8, 0.0), (8.0, 8, 1.0), (0.0, 0, 1.0)])
def test_rate_for_a_mean(mean: float, count: int, rate: float) -> None:
    assert rate_for(mean, count) == pytest.approx(rate, abs=1e-9)


@pytest.mark.usefixtures("own_methods")
def test_method_without_a_profile_cannot_be_replayed(config: BltConfig) -> None:
    unknown = SimpleNamespace(name="mine", rounds=lambda session, sampler: iter(()))
    register_method(MethodEntry("mine", "mine", ("mine",), "for a test", lambda argument: unknown))
    with pytest.raises(ReplayError, match="found method mine, which has no replay profile"):
        ReplayRates.parse("paper,acceptance=0.9,steps=1", ["mine"]).profile("mine", config)
