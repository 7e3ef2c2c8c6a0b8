"""The draft decoder: what its rows see, and that the model beside it stays what it was."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.models.checkpoint import load_checkpoint, save_checkpoint
from fastblt.models.config import BltConfig, ConfigError
from fastblt.models.decoder import BlockRows
from fastblt.models.documents import first_bytes
from fastblt.models.draft_decoder import Anchors
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.formats.merged_draft import merged_draft
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.parameters import count_parameters
from fastblt.models.tokens import BOS_ID, EOS_ID, MASK_ID

LENGTH = 70
STARTS = (1, 9, 30, 46, 66)
SIZE = 4


def text(seed: int) -> Tensor:
    ids = torch.randint(4, 260, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[0, 0] = BOS_ID
    ids[0, [29, 60]] = EOS_ID  # the second is the anchor of a block's document, the first that of a block
    return ids


@pytest.fixture(params=[False, True], ids=["one document", "documents"])
def model(request: pytest.FixtureRequest, tiny_mixed_config: BltConfig, make_model: Callable[..., Blt]) -> Blt:
    return make_model(dataclasses.replace(tiny_mixed_config, document_masks=request.param))


def corrupted(model: Blt, ids: Tensor) -> BlockRows:
    patches, starts = model.segment(ids), torch.tensor([STARTS])
    blocks = torch.randint(4, 260, (1, len(STARTS), SIZE), generator=torch.Generator().manual_seed(1))
    blocks[..., ::2] = MASK_ID
    return BlockRows(blocks, starts, patches.latent_index[0, starts - 1])


def stepped(model: Blt, ids: Tensor, blocks: BlockRows, site: int, *, anchored: bool) -> Tensor:
    """Logits of one block, and of its anchor if there is one, from the incremental path."""
    draft = model.draft
    assert draft is not None
    patches = model.segment(ids)
    states, latents = model.encode(ids, patches)
    known = model.decoder.latent_kv(latents)
    start = STARTS[site]
    seen = first_bytes(torch.nn.functional.pad(ids, (0, 1)))[0] if model.config.document_masks else None
    cache = StackCache(model.config.decoder, LENGTH + SIZE, torch.float32, ids.device)
    first = start - anchored
    if first:
        visible = None if seen is None else seen[:first]
        model.decoder.step(states[:, :first], known, patches.latent_index[:, :first], cache, 0, visible_from=visible)
    tokens = torch.cat([ids[0, first:start], blocks.ids[0, site]])
    rows = draft.tok_embeddings(tokens).unsqueeze(0)
    index = blocks.latent_index[:, site : site + 1].expand(-1, len(tokens))
    visible = None if seen is None else torch.cat([seen[first:start], seen[start].expand(SIZE)])
    return draft.step(rows, known, index, cache, first, block=SIZE, visible_from=visible)[0]


def test_whole_sequence_equals_incremental_path(model: Blt) -> None:
    """Anchors whose keys blocks see, anchors whose clean twins they see, and no anchors; windows are 24 positions."""
    ids = text(0)
    blocks = corrupted(model, ids)
    _, clean = model.run_clean(ids, model.segment(ids))
    visible = torch.tensor([[True, True, True, False, False]])
    anchors = Anchors(ids.gather(1, blocks.starts - 1), visible)
    assert model.draft is not None
    with_anchors, without = model.draft(blocks, clean, anchors)[0], model.draft(blocks, clean)[0]
    for site, sees in enumerate(visible[0].tolist()):
        alone = stepped(model, ids, blocks, site, anchored=False)
        with_anchor = stepped(model, ids, blocks, site, anchored=True)
        torch.testing.assert_close(without[site], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(with_anchors[site, 1:], with_anchor[1:] if sees else alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(with_anchors[site, 0], with_anchor[0], atol=1e-5, rtol=0)
        if STARTS[site] - 1 != 29 or not model.config.document_masks:  # a document that begins with the block
            assert (with_anchor[1:] - alone).abs().max() > 1e-3


def test_forward_with_blocks_leaves_clean_logits_to_the_bit(model: Blt) -> None:
    ids = text(2)
    patches = model.segment(ids)
    plain = Blt(model.config.without_draft)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("draft.")})
    blocks = corrupted(model, ids)
    logits, drafted = model(ids, patches, blocks)
    assert torch.equal(logits, plain.eval()(ids, patches)[0])
    assert drafted is not None
    assert drafted.shape == (1, len(STARTS) * SIZE, 260)


@pytest.mark.parametrize("rank", [None, 3])
def test_draft_begins_as_copy_of_the_decoder_and_only_it_is_trained(tiny_encoder_model: Blt, rank: int | None) -> None:
    model = tiny_encoder_model.with_draft(SIZE, rank)
    assert model.draft is not None
    full, decoder = model.draft.merged(), tiny_encoder_model.decoder.state_dict()
    for name in full.keys() & decoder.keys():
        assert torch.equal(full[name], decoder[name]), name
    assert full.keys() - decoder.keys() == {"tok_embeddings.weight"}
    for name, tensor in tiny_encoder_model.state_dict().items():
        assert model.state_dict()[name].data_ptr() == tensor.data_ptr()
    ids = text(3)
    drafted = model(ids, None, corrupted(model, ids))[1]
    assert drafted is not None
    drafted.square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"draft.{name}" for name in model.draft.state_dict()}
    assert all(p.grad is not None for p in model.draft.parameters())


def test_merged_model_computes_the_same(model: Blt) -> None:
    ids = text(4)
    blocks, merged = corrupted(model, ids), model.merged()
    assert merged.config == dataclasses.replace(model.config, draft_rank=None)
    assert merged.merged() is merged
    torch.testing.assert_close(merged(ids, None, blocks)[1], model(ids, None, blocks)[1], atol=1e-5, rtol=0)


def test_checkpoint_keeps_every_tensor_and_its_merged_view_has_full_matrices(
    tiny_mixed_model: Blt, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "mixed", tiny_mixed_model)
    found = load_checkpoint(tmp_path / "mixed")
    assert found.config == tiny_mixed_model.config
    for name, tensor in tiny_mixed_model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    merged, expected = merged_draft(open_checkpoint(tmp_path / "mixed")), tiny_mixed_model.merged()
    assert {*merged.pieces} == {*expected_shapes(expected.config)}
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(merged.read(name, torch.float32), tensor, atol=1e-6, rtol=0)
        assert merged.shape(name) == tensor.shape


@pytest.mark.parametrize("rank", [None, 1, 8])
def test_draft_parameters_are_counted(tiny_mixed_config: BltConfig, rank: int | None) -> None:
    config = dataclasses.replace(tiny_mixed_config, draft_rank=rank)
    with torch.device("meta"):
        model = Blt(config)
    own = {name: p.numel() for name, p in model.named_parameters() if name.startswith("draft.")}
    counts, plain = count_parameters(config), count_parameters(config.without_draft)
    table = own.pop("draft.tok_embeddings.weight")
    assert counts.draft == sum(own.values())
    assert counts.byte_embeddings == plain.byte_embeddings + table
    assert counts.total == sum(p.numel() for p in model.parameters()) == plain.total + counts.draft + table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "'block_size': found 0, expected a positive integer (decoder_input is 'mixed')"),
        ({"draft_rank": 0}, "'draft_rank': found 0, expected null or a positive integer up to 4096"),
        ({"draft_rank": 4097}, "'draft_rank': found 4097, expected null or a positive integer up to 4096"),
        ({"draft_rank": 2.5}, "'draft_rank': found 2.5"),
        ({"decoder_input": "embedding"}, "'draft_rank': found 3, expected null (decoder_input is 'embedding'"),
        ({"decoder_input": "encoder"}, "'block_size': found 4, expected 0, or a positive integer with decoder_input"),
    ],
)
def test_configuration_is_refused_unless_its_draft_decoder_can_exist(
    tiny_mixed_config: BltConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(tiny_mixed_config, **changes)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_configuration_is_written_with_a_rank_only_if_there_is_a_draft_decoder(tiny_mixed_config: BltConfig) -> None:
    for config in (tiny_mixed_config, dataclasses.replace(tiny_mixed_config, draft_rank=None)):
        assert config.to_dict()["draft_rank"] == config.draft_rank
        assert BltConfig.from_dict(config.to_dict()) == config
    plain = tiny_mixed_config.without_draft
    assert "draft_rank" not in plain.to_dict()
    assert plain.decoder_input == "encoder"
    assert plain.without_draft is plain
