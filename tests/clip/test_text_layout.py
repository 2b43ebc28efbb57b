"""Shared parts of sentences are computed once: results and gradients of one whole forward per sentence."""

import math

import clip_reference as reference
import pytest
import torch
from clip_reference import HEADS, LAYERS, WIDTH

import clip
from clip import Prompts
from clip.chunks import Chunks, in_chunks
from clip.text_layout import text_layout

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = ["cat", "big cat", "big big dog", "dog", "cat", "big dog"]  # the first one twice


def modes(tiny):
    """Two sentences per name, as of ALIGN: `X X of a NAME.` and `X X NAME.`; ids and prompt_index."""
    texts = [text.format(name) for name in NAMES for text in ("X X of a {}.", "X X {}.")]
    ids = clip.tokenize(texts, context_length=24, vocab_size=tiny.vocab_size)
    return ids, torch.arange(2).repeat(len(NAMES))


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def result(pooled, tokens, ids):
    """Pooled features and those of all positions up to the end, and a number that depends on all of them."""
    inside = (torch.arange(tokens.shape[1]) <= ids.argmax(-1)[:, None]) & (torch.arange(tokens.shape[1]) > 0)
    weight = drawn(len(ids), ids.shape[1], pooled.shape[1])[:, : tokens.shape[1]]
    (tokens * weight)[inside].sum().add(pooled.pow(2).sum()).backward()
    return pooled.detach(), tokens[inside].detach()


@pytest.fixture
def costs(monkeypatch):
    """Sets what a group costs: at 0 everything that can be shared is."""

    def set_cost(cost):
        monkeypatch.setattr("clip.text_plan.GROUP_COST", {True: cost, False: cost})

    return set_cost


@pytest.mark.parametrize("chunks", [None, Chunks(2, 0), Chunks(3), Chunks(100, 3)])
@pytest.mark.parametrize("cost", [0, 4, 10**6])
@pytest.mark.parametrize("depth", [1, 3])
def test_results_and_gradients_are_those_of_whole_sentences(tiny, costs, cost, depth, chunks):
    costs(cost)
    ids, prompt_index = modes(tiny)
    slots = torch.tensor([1, 2])
    layers = [drawn(2, 2, WIDTH).mul(k + 1).requires_grad_() for k in range(depth)]
    found = tiny.encode_text(ids, Prompts(tuple(layers), slots, prompt_index), chunks=chunks)
    found = result(*found, ids) + tuple(layer.grad for layer in layers)
    plain = [layer.detach().clone().requires_grad_() for layer in layers]
    rows = [list(layer[prompt_index]) for layer in plain]
    weights = tiny.state_dict()
    expected = reference.prompted_text(weights, ids, LAYERS, HEADS, rows, [[1, 2]] * len(ids))
    expected = result(*expected, ids) + tuple(layer.grad for layer in plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)


def test_label_tokens_behind_the_context_share_it(tiny, costs):
    costs(0)
    ids, prompt_index = modes(tiny)
    slots, place = torch.tensor([1, 2]), torch.tensor([5, 3])[prompt_index][:, None]
    layers, labels = drawn(2, 2, WIDTH), drawn(len(ids), 1, WIDTH)
    found = tiny.encode_text(ids, Prompts((layers,), slots, prompt_index), Prompts((labels,), place))
    expected, _ = reference.prompted_text(
        tiny.state_dict(), ids, LAYERS, HEADS, [list(layers[prompt_index])], [[1, 2]] * len(ids), labels, place.tolist()
    )
    torch.testing.assert_close(found.pooled, expected, **CLOSE)
    plain = Prompts((layers[prompt_index],), slots)
    torch.testing.assert_close(tiny.encode_text(ids, plain, Prompts((labels,), place)).pooled, expected, **CLOSE)


@pytest.mark.parametrize("front", [False, True])
def test_a_context_that_is_not_before_the_names_is_not_shared(tiny, costs, front):
    costs(0)
    texts = [f"X {name} X." if not front else f"{name} X X." for name in NAMES]
    ids = clip.tokenize(texts, context_length=24, vocab_size=tiny.vocab_size)
    first = torch.tensor([[1 if not front else int(end) - 3, int(end) - 2] for end in ids.argmax(-1)])
    context = drawn(2, WIDTH)
    layout = text_layout(ids, ids.argmax(-1).tolist(), torch.zeros(len(ids)).long(), first, None, 0)
    assert layout.prefix == 0
    found = tiny.encode_text(ids, Prompts((context, context), first)).pooled
    rows = [[context] * len(ids)] * 2
    expected, _ = reference.prompted_text(tiny.state_dict(), ids, LAYERS, HEADS, rows, first.tolist())
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_prompt_that_is_shared_beside_one_that_is_not(tiny, costs):
    """The vectors of the second prompt stand behind the names, and so behind the prefix of the first."""
    costs(0)
    texts = [text.format(name) for name in NAMES for text in ("X X {}.", "{} X X.")]
    ids = clip.tokenize(texts, context_length=24, vocab_size=tiny.vocab_size)
    prompt_index, ends = torch.arange(2).repeat(len(NAMES)), ids.argmax(-1)
    slots = torch.stack([torch.where(prompt_index == 0, 1 + k, ends - 3 + k) for k in range(2)], dim=1)
    layout = text_layout(ids, ends.tolist(), prompt_index, slots, None, 0)
    assert layout.prefix >= 3
    assert layout.leaders.tolist() == [0]
    layers = [drawn(2, 2, WIDTH).mul(k + 1).requires_grad_() for k in range(2)]
    found = tiny.encode_text(ids, Prompts(tuple(layers), slots, prompt_index))
    found = result(*found, ids) + tuple(layer.grad for layer in layers)
    plain = [layer.detach().clone().requires_grad_() for layer in layers]
    rows = [list(layer[prompt_index]) for layer in plain]
    expected = reference.prompted_text(tiny.state_dict(), ids, LAYERS, HEADS, rows, slots.tolist())
    expected = result(*expected, ids) + tuple(layer.grad for layer in plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)


def test_positions_that_are_computed(tiny):
    """Counted by hand: 6 names, one of them twice, with ends at 4 + name (mode 1) and 6 + name (mode 0)."""
    ids, prompt_index = modes(tiny)
    ends = ids.argmax(-1).tolist()
    name = [end - 6 for end in ends[::2]]
    assert ends[1::2] == [4 + count for count in name]
    slots = torch.tensor([1, 2])
    layout = text_layout(ids, ends, prompt_index, slots, None, 0)
    different = [name[k] for k in (0, 1, 2, 3, 5)]
    # the prefix: 5 positions of both leaders, of which mode 1 uses 3; then name, period, end
    assert layout.prefix == 5
    assert layout.positions == 2 * 5 + 2 * sum(count + 2 for count in different)
    assert layout.duplicate_of.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 10, 11]
    # groups at a cost: one prefix of 3 for both modes needs fewer groups
    layout = text_layout(ids, ends, prompt_index, slots, None, 6)
    assert layout.prefix == 3
    # too dear: as without
    layout = text_layout(ids, ends, prompt_index, slots, None, 10**6)
    assert (layout.prefix, layout.positions) == (0, 10 * (max(ends) + 1))


def test_rows_with_vectors_of_their_own_share_nothing(tiny):
    """Vectors may be equal now and still be different parameters."""
    ids, _ = modes(tiny)
    ends = ids.argmax(-1).tolist()
    layout = text_layout(ids, ends, None, torch.tensor([1, 2]), None, 0)
    assert layout.prefix == 0
    assert layout.positions == sum(end + 1 for end in ends)
    # label tokens: equal sentences have different vectors in them
    layout = text_layout(ids, ends, torch.zeros(len(ids)).long(), None, torch.full((len(ids), 1), 1), 0)
    assert layout.duplicate_of.tolist() == list(range(len(ids)))
    assert layout.prefix <= 1


def test_memory_is_that_of_a_chunk(tiny):
    """Memory kept for the backward pass does not grow with the number of sentences."""

    def saved(names, chunks):
        ids = clip.tokenize([f"X X {name}." for name in names], context_length=24, vocab_size=tiny.vocab_size)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            prompts = Prompts((drawn(2, WIDTH).requires_grad_(),), torch.tensor([1, 2]))
            tiny.encode_text(ids, prompts, chunks=chunks, tokens=False)
        return sum(kept)

    names = [f"{a} {b}" for a in ("cat", "dog", "bird", "fish") for b in ("a", "b", "c", "d", "e", "f")]
    assert saved(names, None) > 2.5 * saved(names[:6], None)
    assert saved(names, Chunks(6)) < 1.3 * saved(names[:6], None)
    assert saved(names, Chunks(6, 0)) < saved(names[:6], None) / 2


def test_wrong_owners_and_chunks_are_refused(tiny):
    ids, prompt_index = modes(tiny)
    layers, slots = (drawn(2, 2, WIDTH),), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"prompt_index of text prompts spans 1\.\.2; expected 0 to 1 for 2 prompts"):
        tiny.encode_text(ids, Prompts(layers, slots, prompt_index + 1))
    with pytest.raises(ValueError, match=r"prompt_index of text prompts has shape \(3,\).*expected int64 \(12,\)"):
        tiny.encode_text(ids, Prompts(layers, slots, prompt_index[:3]))
    with pytest.raises(ValueError, match="needs at least 1 row"):
        tiny.encode_text(ids, chunks=Chunks(0))


def test_the_last_rows_are_kept():
    """Calls of 3, 3, 2 and 1 rows: the last ones keep their activations while they fit, the others run twice."""

    def runs(chunks):
        count, x = [0] * 4, torch.ones(1, requires_grad=True)

        def encode(rows, number):
            count[number] += 1
            return x.exp().sin().sum()

        calls = [(torch.arange(size), number) for number, size in enumerate((3, 3, 2, 1))]
        sum(in_chunks(encode, calls, chunks)).backward()
        assert float(x.grad) == pytest.approx(4 * math.e * math.cos(math.e))
        return count

    assert runs(None) == runs(Chunks(9)) == runs(Chunks(3, 9)) == [1, 1, 1, 1]
    assert runs(Chunks(3)) == runs(Chunks(3, 5)) == [2, 2, 1, 1]
    assert runs(Chunks(3, 6)) == [2, 1, 1, 1]
    assert runs(Chunks(3, 0)) == [2, 2, 2, 2]


def test_ids_are_read_once_until_they_change(tiny, ids, monkeypatch):
    """The plan of the same tensors is kept; a tensor that was written to, or another one, is read again."""
    calls, real = [], clip.text_plan.text_layout
    monkeypatch.setattr("clip.text_plan.text_layout", lambda *args: calls.append(1) or real(*args))
    slots, context = torch.tensor([1, 2]), torch.randn(2, 64)
    first = tiny.encode_text(ids, Prompts((context,), slots)).pooled
    again = tiny.encode_text(ids, Prompts((2 * context,), slots)).pooled
    assert len(calls) == 1
    assert not torch.allclose(first, again, atol=1e-3)
    ids[0, 3] = 5
    changed = tiny.encode_text(ids, Prompts((context,), slots)).pooled
    torch.testing.assert_close(changed, tiny.encode_text(ids.clone(), Prompts((context,), slots)).pooled)
    assert len(calls) == 3
    assert not torch.allclose(changed[0], first[0], atol=1e-3)
    with pytest.raises(ValueError, match="end-of-text"):
        tiny.encode_text(ids, Prompts((context,), slots + 500))
