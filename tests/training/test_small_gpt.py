"""What must stay true of the small GPT, of its batches, training and checkpoints."""

import csv
import hashlib
import importlib
import math
import multiprocessing
import os
import signal
import sys
from copy import deepcopy
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import said
from torch.testing import assert_close

from attention import (
    KVCache,
    PagedCache,
    QuantizedCache,
    RollingCache,
    future_leak,
)
from attention.training import small_gpt
from attention.training.small_gpt import (
    GPT,
    Characters,
    Muon,
    Recipe,
    Training,
    batch_at,
    held_out_loss,
    keep,
    learning_rate,
    learnt_and_held_out,
    load_corpus,
    orthogonalised,
    put_back,
    read_checkpoint,
    resume,
    save_checkpoint,
    state_of,
    text_loss,
    train,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = {"d": 12, "num_blocks": 3, "num_heads": 2}
RECIPE = Recipe(steps=11, count=3, length=7, warm_up=2, look_every=3, model=TINY)
TEXT = "In each human heart are a tiger, a pig, an ass and a nightingale. " * 11
VARIANTS = {
    "rotary": {},
    "learned": {"positions": "learned"},
    "alibi": {"positions": "alibi"},
    "none": {"positions": "none"},
    "one head": {"num_heads": 1},
    "one key head": {"num_kv_heads": 1},
    "window": {"window": 5},
    "biases": {"bias": True},
}


def tiny(**options) -> GPT:
    """A model whose weights are large enough for all of them to matter."""
    torch.manual_seed(0)
    model = GPT(31, **TINY | {"context_length": 17} | options)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return model.requires_grad_(False)


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(31, shape)


# The text


def test_the_stored_text_is_the_one_that_was_judged():
    content = (ROOT / small_gpt._CORPUS).read_bytes()
    assert len(content) == 382_620 <= 400_000
    digest = hashlib.sha256(content).hexdigest()
    assert digest == "01942ea708221485984bf36a2a5e3bad94a7538a7fecf272fc1ee56cee545662"
    assert all(line == line.rstrip() for line in content.decode().split("\n"))
    told = (ROOT / "book/_data/README.md").read_text("utf-8")
    assert "dict-devil" in told
    assert "Public Domain" in told


def test_a_text_is_found_in_a_clone_and_read_from_any_path(tmp_path, monkeypatch):
    assert load_corpus().startswith("PREFACE\n")
    (tmp_path / "other.txt").write_text("tête-à-tête", encoding="utf-8")
    assert load_corpus(tmp_path / "other.txt") == "tête-à-tête"
    monkeypatch.setattr(small_gpt, "_CORPUS", "book/_data/gone.txt")
    with pytest.raises(FileNotFoundError, match=said("gone.txt", "load_corpus(path)")):
        load_corpus()


def test_characters_come_back_and_an_unknown_one_is_named():
    tokenizer = Characters(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer) == len(set(TEXT)) == max(tokenizer.encode(TEXT)) + 1
    with pytest.raises(ValueError, match=said("text", "'Z'")):
        tokenizer.encode("a Zebra")


@pytest.mark.parametrize(
    "ids", [[-1], [999], [1.0], "01", torch.tensor([-1]), 3, None, torch.tensor(3)]
)
def test_a_number_of_no_character_is_named(ids, as_importer):
    with pytest.raises(ValueError, match=said("ids", "from 0 to", "got")):
        Characters(TEXT).decode(ids)


@pytest.mark.parametrize("positions", ["rotary", "learned", "alibi", "none"])
@pytest.mark.parametrize("context_length", [0, -3, 1.5])
def test_a_context_is_a_whole_number(positions, context_length, as_importer):
    match = said("context_length", "at least 1", "got", context_length)
    with pytest.raises(ValueError, match=match):
        GPT(11, positions=positions, context_length=context_length)


# Batches


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16])
@pytest.mark.parametrize("vocabulary", [100, 300])  # 300 would be 44 in eight bits
def test_targets_of_few_bits_have_the_same_loss(dtype, vocabulary):
    model, ids = GPT(vocabulary, d=8, num_heads=2), torch.arange(60, 66)[None]
    must = text_loss(model, ids, ids)
    assert_close(text_loss(model, ids, ids.to(dtype)), must, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16])
def test_inputs_of_few_bits_are_refused_by_name(dtype, as_importer):
    model, ids = GPT(100, d=8, num_heads=2), torch.arange(60, 66)[None]
    with pytest.raises(ValueError, match=said("ids", "int32", "int64", "got", dtype)):
        text_loss(model, ids.to(dtype), ids)


@pytest.mark.parametrize(
    "seed", [-1, 2**40, 1_700_000_000_000_000_000, np.int64(2**62)]
)
@pytest.mark.usefixtures("as_importer")
def test_any_seed_of_64_bits_draws_pieces_of_its_own(seed):
    first = batch_at(3, torch.arange(9999), 3, 7, seed=seed)[0]
    assert torch.equal(first, batch_at(3, torch.arange(9999), 3, 7, seed=int(seed))[0])
    assert not torch.equal(
        first, batch_at(3, torch.arange(9999), 3, 7, seed=seed + 1)[0]
    )


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, np.uint8])
@pytest.mark.usefixtures("as_importer")
def test_numbers_of_any_kind_are_characters_again(kind):
    assert Characters("hello").decode(kind([1, 2, 0])) == "hle"
    for wrong in ([1.0], [True], np.array([1.0]), [np.True_]):
        with pytest.raises(ValueError, match=said("ids", "whole numbers", "got")):
            Characters("hello").decode(wrong)


def test_targets_are_the_inputs_one_token_further():
    for step in 0, 5, 23:
        inputs, targets = batch_at(step, torch.arange(97), 3, 7)
        assert torch.equal(targets, inputs + 1)
        assert (inputs.diff() == 1).all()


def test_a_round_reads_no_token_twice_and_the_next_is_cut_elsewhere():
    ids = torch.arange(200)
    rounds = [
        torch.cat([batch_at(9 * turn + step, ids, 3, 7)[0] for step in range(9)])
        for turn in range(4)
    ]
    for each in rounds:
        assert len(each.flatten().unique()) == each.numel()
    assert len({tuple(sorted((each[:, 0] % 7).tolist())) for each in rounds}) > 1
    assert any(not torch.equal(a, b) for a, b in pairwise(rounds))


def test_a_batch_follows_from_seed_and_step_alone():
    ids = torch.arange(200)
    first = batch_at(13, ids, 3, 7, seed=5)
    torch.rand(7)
    assert torch.equal(first[0], batch_at(13, ids, 3, 7, seed=5)[0])
    assert not torch.equal(first[0], batch_at(13, ids, 3, 7, seed=6)[0])
    assert not torch.equal(first[0], batch_at(14, ids, 3, 7, seed=5)[0])


def test_batches_never_reach_the_held_out_text():
    learnt, held_out = learnt_and_held_out(torch.arange(211))
    assert len(learnt) == 189
    assert torch.equal(torch.cat([learnt, held_out]), torch.arange(211))
    most = max(batch_at(step, learnt, 3, 7)[1].max() for step in range(100))
    assert most < held_out.min()


def test_the_least_text_is_one_batch_and_a_shorter_one_is_refused():
    inputs, _ = batch_at(4, torch.arange(28), 3, 7)
    assert inputs.shape == (3, 7)
    with pytest.raises(ValueError, match=said("ids", "28", "27")):
        batch_at(0, torch.arange(27), 3, 7)


# The model


def test_it_has_one_million_parameters_and_the_formula_counts_them():
    model = GPT(83)
    count = sum(weights.numel() for weights in model.parameters())
    assert count == 83 * 128 + 5 * (12 * 128**2 + 2 * 128) + 128
    assert abs(count - 1e6) < 1e5


def test_the_embedding_is_tied():
    model, ids = tiny(), some_ids(2, 5)
    names = [name for name, weights in model.named_parameters() if len(weights) == 31]
    assert names == ["embedding.weight"]
    before = model(ids)
    model.embedding.weight[30] += 1  # a token that does not occur
    ids = ids.clamp(max=29)
    assert not torch.equal(model(ids)[..., 30], before[..., 30])


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_no_variant_sees_the_future(options):
    model, ids = tiny(**options), some_ids(2, 13)
    changed = ids.clone()
    changed[:, 7:] = (ids[:, 7:] + 1) % 31
    got, must = model(changed), model(ids)
    assert_close(got[:, :7], must[:, :7])
    assert (got[:, 7:] - must[:, 7:]).abs().amax(dim=-1).min() > 0
    assert all(future_leak(block, torch.randn(1, 7, 12)) == 0 for block in model.blocks)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("sizes", [[13], [5, 1, 4, 3], [1] * 13])
def test_a_text_read_in_pieces_gives_what_it_gives_whole(options, sizes):
    model, ids = tiny(**options), some_ids(2, 13)
    caches = [KVCache() for _ in model.blocks]
    pieces = [model(piece, caches=caches) for piece in ids.split(sizes, dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(ids), atol=1e-4, rtol=1e-4)


def test_every_cache_of_the_book_serves():
    ids = some_ids(1, 13)
    kinds = {
        "paged": ({}, lambda: PagedCache(4), 1e-4),
        "rolling": ({"window": 5}, lambda: RollingCache(5), 1e-4),
        "8 bits": ({}, lambda: QuantizedCache(8), 0.1),
    }
    for name, (options, make, error) in kinds.items():
        model = tiny(**options)
        caches, must = [make() for _ in model.blocks], model(ids)
        got = torch.cat([model(each, caches=caches) for each in ids.split(1, 1)], 1)
        assert (got - must).abs().max() <= error * must.abs().max(), name


def test_a_call_that_is_refused_leaves_all_caches_as_they_were():
    model = tiny(positions="learned")
    caches = [KVCache(), KVCache(capacity=6), KVCache()]
    before = model(some_ids(1, 5), caches=caches)
    with pytest.raises(ValueError, match=said("capacity")):
        model(some_ids(1, 2), caches=caches)
    assert [cache.length for cache in caches] == [5, 5, 5]
    assert before.isfinite().all()
    with pytest.raises(ValueError, match=said("length", "17")):
        model(some_ids(1, 18))


def test_the_weights_shown_are_those_of_each_block():
    model, ids = tiny(), some_ids(2, 7)
    maps = model.attention_weights(ids)
    assert len(maps) == 3
    assert all(each.shape == (2, 2, 7, 7) for each in maps)
    x = model.embedding(ids)
    for block, weights in zip(model.blocks, maps, strict=True):
        assert_close(
            block.attention.attention_weights(block.attention_norm(x)), weights
        )
        x = block(x)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_weights_shown_beside_caches_are_those_of_the_whole(positions):
    model, ids = tiny(positions=positions), some_ids(2, 7)
    caches = [KVCache() for _ in model.blocks]
    model(ids[:, :4], caches=caches)
    rows = model.attention_weights(ids[:, 4:], caches=caches)
    for some, all_rows in zip(rows, model.attention_weights(ids), strict=True):
        assert_close(some, all_rows[..., 4:, :])
    assert [cache.length for cache in caches] == [4, 4, 4]
    with pytest.raises(TypeError, match="cache"):  # one for all blocks
        model.attention_weights(ids, cache=KVCache())


def test_positions_and_masks_are_handed_to_every_block():
    for options in {}, {"positions": "learned"}, {"positions": "alibi"}:
        model, ids = tiny(**options), some_ids(1, 7)
        assert_close(model(ids, positions=torch.arange(7)), model(ids))
        real = torch.ones(1, 1, 1, 7, dtype=torch.bool)
        real[..., 2] = False
        hidden = ids.clone()
        hidden[:, 2] = (ids[:, 2] + 1) % 31
        got, must = model(hidden, real), model(ids, real)
        assert_close(got[:, 3:], must[:, 3:])
        assert not torch.equal(model(hidden)[:, 3:], model(ids)[:, 3:])


@pytest.mark.parametrize("positions", ["rotary", "learned", "alibi", "none"])
def test_only_positions_tell_an_order(positions):
    model = tiny(positions=positions, num_blocks=1)
    ids = torch.tensor([[3, 5, 7, 2]])
    swapped = torch.tensor([[5, 3, 7, 2]])
    same = torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-5)
    assert same == (positions == "none")


def test_it_begins_by_knowing_nothing():
    torch.manual_seed(0)
    model, ids = GPT(83), torch.randint(83, (4, 64))
    loss = text_loss(model, ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss - math.log(83)) < 0.2


# The loss and the learning rate


def test_the_held_out_loss_is_a_mean_over_all_whole_pieces():
    model, ids = tiny(), some_ids(7 * 41 + 5)
    pieces = [
        text_loss(model, ids[a : a + 7], ids[a + 1 : a + 8]) for a in range(0, 287, 7)
    ]
    assert math.isclose(held_out_loss(model, ids, 7), sum(pieces) / 41, rel_tol=1e-4)
    with pytest.raises(ValueError, match=said("ids", "8", "7")):
        held_out_loss(model, ids[:7], 7)


def test_the_learning_rate_rises_on_a_line_and_falls_to_nothing():
    rates = [learning_rate(step, 100, 20) for step in range(101)]
    assert_close(torch.tensor(rates[:20]), torch.arange(1, 21) / 20)
    assert max(rates) == rates[19] == rates[20] == 1
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate(7, 5, 0) == pytest.approx(0, abs=1e-12), "after the end"


# Muon


@pytest.mark.parametrize("shape", [(3, 5, 11), (3, 11, 5), (2, 7, 7)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    given = torch.randn(shape)
    got = orthogonalised(given)
    assert got.shape == given.shape
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    inner = left.mT @ got @ right.mT
    off = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-3


def test_a_step_of_muon_is_as_large_for_a_small_gradient_as_for_a_large_one():
    moves = []
    for size in 1e-3, 1e3:
        torch.manual_seed(0)
        matrix = torch.nn.Parameter(torch.zeros(5, 7))
        matrix.grad = size * torch.randn(5, 7)
        Muon([matrix], weight_decay=0.0).step()
        moves.append(matrix.detach().clone())
    assert_close(*moves, rtol=1e-3, atol=1e-5)
    assert 0 < moves[0].abs().max() < 0.04


def test_muon_goes_against_the_gradient_and_weights_shrink():
    matrix = torch.nn.Parameter(torch.eye(5))
    matrix.grad = torch.eye(5)
    Muon([matrix], weight_decay=0.1).step()
    assert (matrix.diagonal() < 1 - 0.02 * 0.1).all()
    still = torch.nn.Parameter(torch.eye(5))
    still.grad = torch.zeros(5, 5)
    Muon([still], weight_decay=0.5).step()
    assert_close(still.detach(), torch.eye(5) * (1 - 0.02 * 0.5))


def test_muon_moves_all_its_groups_and_leaves_what_has_no_gradient():
    first, second, idle = (torch.nn.Parameter(torch.zeros(5, 7)) for _ in range(3))
    optimiser = Muon([first, idle])
    optimiser.add_param_group({"params": [second], "lr": 0.2})
    for matrix in first, second:
        matrix.grad = torch.eye(5, 7)
    optimiser.step()
    assert_close(second.detach(), 10 * first.detach())
    assert first.detach().any()
    assert not idle.detach().any()


def test_muon_asks_a_closure_as_the_optimisers_of_pytorch_do():
    moved = []
    for kind in (Muon, partial(torch.optim.SGD, lr=0.1)):
        matrix = torch.nn.Parameter(torch.ones(3, 4))
        optimiser = kind([matrix])

        def closure(matrix=matrix):
            loss = matrix.square().sum()
            loss.backward()
            return loss

        assert optimiser.step(closure).item() == 12
        moved.append(bool((matrix < 1).all()))
        matrix.grad = None
        assert optimiser.step() is None
    assert moved == [True, True]


def test_what_is_no_matrix_leaves_muon_as_it_was():
    optimiser = Muon([torch.nn.Parameter(torch.zeros(5, 7))])
    with pytest.raises(ValueError, match=said("matrices", "two axes", "got", "(3,)")):
        optimiser.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})
    assert len(optimiser.param_groups) == 1


# Training


def test_each_weight_has_one_optimiser_and_embedding_and_norms_have_adam():
    training = Training(TEXT, RECIPE)
    muon, adam = (
        {id(p) for p in optimiser.param_groups[0]["params"]}
        for optimiser in (training.muon, training.adam)
    )
    assert not muon & adam
    assert muon | adam == {id(p) for p in training.model.parameters()}
    assert id(training.model.embedding.weight) in adam


def test_embedding_and_norms_stay_where_their_gradient_is_zero():
    training = Training(TEXT, RECIPE)
    weights = training.adam.param_groups[0]["params"]
    before = [each.detach().clone() for each in weights]
    for each in weights:
        each.grad = torch.zeros_like(each)
    training.adam.step()
    assert_close([each.detach() for each in weights], before, rtol=0, atol=0)


def test_it_learns_and_equal_recipes_give_equal_losses():
    first, second = (Training(TEXT, RECIPE) for _ in range(2))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert [*train(first)] == [*range(1, 12)]
    assert torch.equal(state, torch.random.get_rng_state()), "no draw of the caller's"
    for _ in train(second):
        torch.rand(1)
    assert first.losses == second.losses
    assert max(first.losses[-3:]) < min(first.losses[:3])
    assert [step for step, *_ in first.looks] == [3, 6, 9, 11]


@cache
def whole() -> Training:
    """A training without a break, the same for all tests that compare with it."""
    training = Training(TEXT, RECIPE)
    assert [*train(training)][-1] == 11
    return training


def outcome(training: Training):
    """All that must be equal after a resumed training and one without a break."""
    looks = [look[:2] for look in training.looks]
    return training.losses, looks, training.model.state_dict()


@pytest.mark.parametrize("stop", [1, 3, 4, 9, 10, 11])
def test_a_training_that_is_stopped_and_resumed_gives_the_same_losses(stop, tmp_path):
    for step in train(Training(TEXT, RECIPE), tmp_path):
        if step == stop:
            break
    third = Training(TEXT, RECIPE)
    assert resume(third, tmp_path) == []
    assert len(third.losses) == (11 if stop == 11 else stop // 3 * 3)
    assert [*train(third, tmp_path)][-1:] in ([11], [])
    assert_same(third, whole())


def assert_same(training, other):
    got, must = outcome(training), outcome(other)
    assert got[:2] == must[:2]
    assert all(torch.equal(got[2][name], must[2][name]) for name in must[2])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_a_step(folder: Path) -> None:
    torch.set_num_threads(1)
    for step in train(Training(TEXT, RECIPE), folder):
        if step == 8:
            die()


def killed_in_a_write(folder: Path) -> None:
    """In the middle of the third checkpoint."""
    torch.set_num_threads(1)
    replace, written = os.replace, []

    def replace_or_die(*paths):
        written.append(paths)
        if len(written) == 5:
            content = Path(paths[0]).read_bytes()
            Path(paths[0]).write_bytes(content[: len(content) // 2])
            die()
        replace(*paths)

    os.replace = replace_or_die  # in a process of its own
    for _ in train(Training(TEXT, RECIPE), folder):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it knows no SIGKILL")
@pytest.mark.parametrize("killed", [killed_at_a_step, killed_in_a_write])
def test_a_training_that_is_killed_goes_on_to_the_same_losses(killed, tmp_path):
    # Not a fork: autograd refuses to work in one once it has started its threads.
    spawned = multiprocessing.get_context("spawn").Process
    process = spawned(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    torch.set_num_threads(1)
    training = Training(TEXT, RECIPE)
    assert resume(training, tmp_path) == []
    assert len(training.losses) == 6
    assert [*train(training, tmp_path)][-1] == 11
    assert_same(training, whole())


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:700] + bytes([content[700] ^ 1]) + content[701:]


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b""])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(damage, tmp_path):
    for _ in train(Training(TEXT, RECIPE), tmp_path):
        pass
    newest = tmp_path / "step-000011.checkpoint"
    newest.write_bytes(damage(newest.read_bytes()))
    training = Training(TEXT, RECIPE)
    (sentence,) = resume(training, tmp_path)
    assert newest.name in sentence
    assert "as it was written" in sentence
    assert len(training.losses) == 9
    assert [*train(training, tmp_path)] == [10, 11]
    assert_same(training, whole())


def test_where_all_checkpoints_are_damaged_it_begins_anew(tmp_path):
    for name in "step-000003", "step-000006":
        (tmp_path / f"{name}.checkpoint").write_bytes(b"nothing")
    training = Training(TEXT, RECIPE)
    assert len(resume(training, tmp_path)) == 2
    assert training.losses == []


def test_two_checkpoints_and_the_best_model_are_left(tmp_path):
    training = Training(TEXT, RECIPE)
    losses = iter([3.0, 1.0, 2.0, 1.5])
    training.look = lambda: training.looks.append(
        (len(training.losses), next(losses), 0.0)
    )
    models = {}
    for step in train(training, tmp_path):
        models[step] = deepcopy(training.model.state_dict())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "best.checkpoint",
        *(f"step-0000{n}.checkpoint" for n in ("09", 11)),
    ]
    best = read_checkpoint(tmp_path / "best.checkpoint")
    assert best["looks"][-1][:2] == (6, 1.0)
    assert torch.equal(best["model"]["embedding.weight"], models[6]["embedding.weight"])


def test_a_state_of_another_recipe_is_refused(tmp_path):
    training = Training(TEXT, RECIPE)
    training.step()
    training.look()
    keep(training, tmp_path)
    other = Training(TEXT, Recipe(steps=12, count=3, length=7, model=TINY))
    with pytest.raises(ValueError, match=said("recipe.steps", "12", "11")):
        resume(other, tmp_path)


def another_text(tmp_path, text):
    """A training, for which a checkpoint of another text is kept."""
    other = Training(text, RECIPE)
    other.step()
    other.look()
    keep(other, tmp_path)
    return Training(TEXT, RECIPE)


@pytest.mark.parametrize(
    "text", [TEXT + "∀∃", TEXT.replace("pig", "gip"), TEXT + TEXT, TEXT[:-1] + "!"]
)
def test_a_state_of_another_text_is_refused_and_changes_nothing(text, tmp_path):
    training = another_text(tmp_path, text)
    before = deepcopy(training.model.state_dict())
    with pytest.raises(ValueError, match=said("text", "this state", "another")):
        resume(training, tmp_path)
    assert training.losses == []
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_state_without_the_sum_of_its_text_is_judged_by_its_shapes():
    """As one that an earlier version has written."""
    training = Training(TEXT, RECIPE)
    training.step()
    state, longer = state_of(training), Training(TEXT + "∀∃", RECIPE)
    del state["text"]
    with pytest.raises(ValueError, match=said("embedding.weight", "text", "got")):
        put_back(longer, state)
    put_back(fresh := Training(TEXT, RECIPE), state)
    assert fresh.losses == training.losses


def test_a_text_that_utf_8_cannot_hold_has_a_sum_too():
    assert Training(TEXT + "\ud800", RECIPE).step() > 0


def test_after_a_million_steps_the_newest_checkpoint_is_still_the_last(tmp_path):
    training = Training(TEXT, RECIPE)
    for step in 999_998, 999_999, 1_000_000:
        training.losses = [float(step)]
        training.looks = [(step, 1.0, 0.0)]
        keep(training, tmp_path)
    fresh = Training(TEXT, RECIPE)
    assert resume(fresh, tmp_path) == []
    assert fresh.losses == [1_000_000.0]
    steps = {path.name for path in tmp_path.glob("step-*")}
    assert steps == {"step-999999.checkpoint", "step-1000000.checkpoint"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "it.checkpoint"
    save_checkpoint(path, {"step": 1})

    def full(file):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"step": 2})
    assert read_checkpoint(path) == {"step": 1}


# The command


TINY_OPTIONS = ["--d=12", "--num-blocks=1", "--num-heads=2", "--count=3", "--length=7"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs book/train.py on a small text; gives its exit code, and what it said."""
    monkeypatch.syspath_prepend(ROOT / "book")
    script = importlib.import_module("train")
    (tmp_path / "text").write_text(TEXT)

    def run(*arguments: str) -> tuple[int, str]:
        places = ["--text", f"{tmp_path / 'text'}", "--folder", f"{tmp_path / 'run'}"]
        code = script.main([*places, *TINY_OPTIONS, *arguments])
        return code, "".join(capsys.readouterr())

    return run


def test_the_command_trains_goes_on_writes_and_refuses(command, tmp_path):
    steps = ["--steps=9", "--look-every=4", "--warm-up=2"]
    code, said_first = command(*steps)
    assert code == 0
    assert "9/9" in said_first
    first = (tmp_path / "run/curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in first] == ["step", "4", "8", "9"]
    assert "<svg" in (tmp_path / "run/curve.svg").read_text()
    (tmp_path / "run/step-000009.checkpoint").unlink()
    assert "goes on after step 8" in command(*steps)[1]
    second = (tmp_path / "run/curve.csv").read_text().splitlines()
    assert all(
        a.split(",")[:3] == b.split(",")[:3] for a, b in zip(first, second, strict=True)
    )
    assert len(command(*steps, "--write", "human")[1]) > 300
    other = tmp_path / "other"
    other.write_text(TEXT.replace("pig", "gip"))
    code, refused = command(*steps, "--write", "human", f"--text={other}")
    assert code == 1
    assert "text: expected the one learnt from, got another" in refused
    code, refused = command("--steps=10", "--look-every=4", "--warm-up=2")
    assert code == 1
    assert "recipe.steps: expected 10, got 9" in refused


def test_the_table_of_variants_has_a_row_for_each_and_seed(command, tmp_path):
    table = tmp_path / "table.csv"
    options = ["--variants", "--seeds=2", "--steps=2", "--table", f"{table}"]
    assert command(*options)[0] == 0
    rows = [*csv.reader(table.read_text().splitlines())]
    assert len(rows) == 1 + 2 * 7
    assert {row[2] for row in rows[1:]} == {"2"}
    told = command(*options)[1]
    assert "seed" not in told, "what stands in the table is not trained again"


def test_the_stored_numbers_are_of_this_recipe_and_meet_the_goal():
    curve = (ROOT / "book/_data/small_gpt_curve.csv").read_text().splitlines()
    last = curve[-1].split(",")
    assert int(last[0]) == Recipe().steps
    reached = [row.split(",") for row in curve[1:] if float(row.split(",")[2]) <= 2.0]
    assert float(reached[0][3]) <= 300
