"""Heterogeneous graph attention: laws that hold for any weights."""

import pytest
import torch
from torch.nn import functional as F

from models.han import HANEncoder
from rllib_envs.errors import InputError
from tests.models.han_inputs import EMPTY, HEADS, HIDDEN, REQUESTS, WIDTHS, assert_same, draw, make_encoder


def pad(arrays, **amounts):
    """More slots or experts, filled with what must not matter."""
    grown = dict(arrays)
    for name in REQUESTS:
        grown[name] = F.pad(arrays[name], (0, 0, 0, amounts.get("slots", 0)), value=7.0)
        grown[f"{name}_mask"] = F.pad(arrays[f"{name}_mask"], (0, amounts.get("slots", 0)))
    experts = amounts.get("experts", 0)
    return {key: F.pad(x, (0, 0) * (x.dim() - 2) + (0, experts), value=1.0) for key, x in grown.items()}


@pytest.fixture(params=[1, 2], ids=["one-layer", "two-layers"])
def encoder(request):
    return make_encoder(request.param)


def apart(ours, theirs, index):
    """Least distance at the index between two pairs of embeddings."""
    return min((a[index] - b[index]).abs().amax(dim=-1).min() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("seen", REQUESTS)
def test_requests_without_edges_are_not_seen(layers, seen):
    arrays, (unseen,) = draw(9), [name for name in REQUESTS if name != seen]
    encoder = make_encoder(layers, requests=(seen,))
    without = encoder(**arrays)
    assert_same(encoder(**arrays | {unseen: arrays[unseen] + 1}), without, rtol=0, atol=0)
    assert apart(encoder(**arrays | {seen: arrays[seen] + 1}), without, (arrays[f"{seen}_mask"].sum(-1) > 0)) > 0


@pytest.mark.parametrize("layers", [1, 2])
def test_without_semantic_attention_edge_types_count_alike(layers):
    """As with it, once its vector q is 0."""
    arrays, encoder = draw(9), make_encoder(layers)
    plain = make_encoder(layers, semantic=False)
    plain.load_state_dict({key: x for key, x in encoder.state_dict().items() if key in plain.state_dict()})
    assert apart(encoder(**arrays), plain(**arrays), (slice(None), 0)) > 0
    for layer in (encoder.first, encoder.second):
        if layer is not None:
            torch.nn.init.zeros_(layer.q)
    assert_same(encoder(**arrays), plain(**arrays))


def test_permuting_experts_permutes_embeddings(encoder):
    arrays, order = draw(5), torch.tensor([2, 0, 3, 1])
    moved = {key: x[:, order] for key, x in arrays.items()}
    assert_same(encoder(**moved), [out[:, order] for out in encoder(**arrays)])


@pytest.mark.parametrize("name", REQUESTS)
def test_the_order_of_an_experts_requests_does_not_matter(encoder, name):
    arrays = draw(6)
    moved = arrays | {key: arrays[key].flip(2) for key in (name, f"{name}_mask")}
    assert_same(encoder(**moved), encoder(**arrays))


def test_padding_changes_nothing(encoder):
    arrays = draw(7)
    assert_same(encoder(**pad(arrays, slots=6)), encoder(**arrays))
    mask = F.pad(torch.ones(3, 4), (0, 3))
    assert_same([out[:, :4] for out in encoder(**pad(arrays, experts=3), expert_mask=mask)], encoder(**arrays))


def test_alone_is_as_in_a_batch(encoder):
    arrays = draw(8)
    whole = encoder(**arrays)
    for b in range(3):
        alone = encoder(**{key: x[b : b + 1] for key, x in arrays.items()})
        assert_same(alone, [out[b : b + 1] for out in whole], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", REQUESTS)
def test_ten_like_requests_are_more_than_one(encoder, name):
    arrays = draw(9, slots=(10, 10))
    arrays[name] = arrays[name][:, :, :1].expand(-1, -1, 10, -1)
    one, ten = (arrays | {f"{name}_mask": (torch.arange(10) < count).double().expand(3, 4, 10)} for count in (1, 10))
    assert apart(encoder(**one), encoder(**ten), ...) > 1e-2


def test_an_expert_keeps_its_own_features(encoder):
    arrays = draw(10)
    other = arrays | {"experts": arrays["experts"] + 1}
    assert apart(encoder(**arrays), encoder(**other), (slice(None), EMPTY)) > 1e-2


def test_the_arrived_request_is_seen_by_one_embedding_only(encoder):
    arrays = draw(11)
    without, with_ = encoder(**arrays)
    other_without, other_with = encoder(**arrays | {"arrived": arrays["arrived"] + 1})
    assert torch.equal(without, other_without)
    assert (with_ - other_with).abs().amax(dim=-1).min() > 1e-3
    assert (with_ - without).abs().amax(dim=-1).min() > 1e-3


def test_another_expert_acts_through_the_weights_of_the_edge_types_alone():
    """With those held equal, what happens at one expert leaves the others' embeddings as they are."""
    encoder, arrays = make_encoder(1), draw(13)
    changed = arrays | {"running": arrays["running"].clone()}
    changed["running"][:, 0] += 1
    before, after = encoder(**arrays), encoder(**changed)
    assert apart(before, after, (slice(None), 0)) > 1e-2
    assert apart(before, after, (slice(None), slice(2, None))) > 1e-6
    torch.nn.init.zeros_(encoder.first.q)
    assert_same([out[:, 1:] for out in encoder(**arrays)], [out[:, 1:] for out in encoder(**changed)])


def test_with_two_layers_a_request_is_seen_in_the_light_of_its_expert():
    """The second difference in a request's and its expert's features, which a sum of effects has not."""
    arrays = draw(14, batch=1)
    shifts = {"experts": 0.5, "running": 0.5}
    linear = make_encoder(2)
    for layer in (linear.first, linear.second):
        torch.nn.init.zeros_(layer.q)  # equal weights of the edge types
        for vector in [*layer.lin_src.values(), *layer.lin_dst.values()]:
            torch.nn.init.zeros_(vector)  # equal attention

    def embed(*shifted):
        return linear(**arrays | {name: arrays[name] + shifts[name] for name in shifted})[0]

    interaction = embed(*shifts) - embed("experts") - embed("running") + embed()
    assert interaction[:, [0, 2, 3]].abs().amax() > 1e-3
    assert interaction[:, EMPTY].abs().amax() < 1e-12


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_are_finite_whatever_comes_in(scale, layers):
    encoder, arrays = make_encoder(layers, torch.float32), draw(15, dtype=torch.float32, scale=scale)
    sum(out.square().mean() for out in encoder(**arrays)).backward()
    for name, parameter in encoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_a_cluster_without_requests_has_finite_gradients(encoder):
    arrays = {key: 0 * x if key.endswith("_mask") else x for key, x in draw(16).items()}
    sum(out.square().mean() for out in encoder(**arrays)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


def test_single_precision_is_enough(encoder):
    arrays = draw(17)
    single = make_encoder(1 if encoder.second is None else 2, torch.float32)
    expected = [out.float() for out in encoder(**arrays)]
    assert_same(single(**{key: x.float() for key, x in arrays.items()}), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 17, 256])
def test_the_same_weights_serve_any_number_of_experts(encoder, n):
    """Identical experts have the embedding of two of them, however many there are."""
    arrays = {key: x[:, :1].expand(-1, n, *x.shape[2:]) for key, x in draw(18).items()}
    two = encoder(**{key: x[:, :2] for key, x in arrays.items()})
    assert_same(encoder(**arrays), [out[:, :1].expand(-1, n, -1) for out in two])


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_trace_serves_any_batch_and_number_of_experts(encoder):
    traced = torch.jit.trace(encoder, tuple(draw(19).values()))
    other = draw(20, batch=7, n=9, slots=(4, 6))
    assert_same(traced(*other.values()), encoder(**other))


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(InputError, match=f"hidden = 8, heads = {heads}"):
        HANEncoder(*WIDTHS, HIDDEN, heads)


def test_three_layers_are_refused():
    with pytest.raises(InputError, match="layers = 3"):
        HANEncoder(*WIDTHS, HIDDEN, HEADS, 3)
