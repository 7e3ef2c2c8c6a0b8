"""Compiled layers, against the same layers as they are written; generating code would take most of a minute."""

from __future__ import annotations

import torch

from fastblt.models.blt import Blt
from fastblt.models.training.compilation import compile_layers


def test_losses_and_gradients_are_those_of_layers_as_written(tiny_model: Blt) -> None:
    plain, compiled = Blt(tiny_model.config), Blt(tiny_model.config)
    for model in (plain, compiled):
        model.load_state_dict(tiny_model.state_dict())
    compile_layers(compiled, "aot_eager")
    ids = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 1
    patches = plain.segment(ids)
    found = []
    for model in (plain, compiled):
        logits = model(ids, patches)[0]
        logits.logsumexp(-1).sum().backward()
        found.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (logits, gradients), (compiled_logits, compiled_gradients) = found
    torch.testing.assert_close(compiled_logits, logits)
    assert gradients.keys() == compiled_gradients.keys()
    for name, wanted in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], wanted, rtol=1e-3, atol=1e-4, msg=name)
    with torch.no_grad():
        assert torch.equal(compiled(ids, patches)[0], plain(ids, patches)[0]), "nothing is compiled without gradients"
