"""The plan of a benchmark: what is measured, in which order, and what each is compared with."""

from __future__ import annotations

import pytest
from fakes.bench_measurement import EAGER, ORT

from fastblt.runtime.measure.bench.plan import Contender, make_bench_plan
from fastblt.runtime.measure.rotation import rotated
from fastblt.runtime.methods import MethodError


def test_plan_measures_ar_of_every_backend_first_and_once() -> None:
    plan = make_bench_plan(ORT, ["s:4", "ar", "s:4"], ["eager/s:2", "eager"])
    assert [str(c) for c in plan.contenders] == ["onnxruntime/ar", "onnxruntime/s:4", "eager/ar", "eager/s:2"]
    assert (plan.backend, plan.baseline) == (ORT, EAGER)


def test_reference_is_own_ar_and_for_ar_the_other_backends() -> None:
    plan = make_bench_plan(ORT, ["s:4"], ["eager", "third"])
    ar, eager = Contender(ORT, "ar"), Contender(EAGER, "ar")
    assert plan.reference(Contender(ORT, "s:4")) == ar
    assert plan.reference(Contender(EAGER, "s:4")) == eager
    assert plan.reference(ar) == eager
    assert plan.reference(eager) == plan.reference(Contender("third", "ar")) == ar
    assert make_bench_plan(ORT, []).reference(ar) == ar


def test_plan_refuses_unknown_method() -> None:
    with pytest.raises(MethodError, match="'x'"):
        make_bench_plan(ORT, ["x"])


def test_order_rotates_so_that_each_is_first_once() -> None:
    plan = make_bench_plan(ORT, ["s:4"], ["eager"])
    orders = [rotated(plan.contenders, turn) for turn in range(3)]
    assert [order[0] for order in orders] == list(plan.contenders)
    assert all(sorted(map(str, order)) == sorted(map(str, plan.contenders)) for order in orders)
