"""Heterogeneous graph attention beside torch-geometric: its operator, the sparse form, the stock readout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import HANConv

from models.han import FROM_EXPERT, INTO_EXPERT, HANLayer
from models.han_graph import cluster_graph, embed_graph, update_nodes
from models.paper.pooled import PooledHAN
from tests.draws import examples
from tests.models.han_inputs import HEADS, HIDDEN, REQUESTS, WIDTHS, assert_same, draw, make_encoder

pytestmark = pytest.mark.slow  # torch-geometric takes longer to import than these to run


@pytest.fixture(params=[1, 2], ids=["one-layer", "two-layers"])
def encoder(request):
    return make_encoder(request.param)


def test_plain_on_one_graph_it_is_the_operator_of_pyg():
    torch.manual_seed(0)
    graph = cluster_graph(**draw(1, batch=1))
    channels = {name: x.shape[-1] for name, x in graph.x.items()}
    edge_types = [*INTO_EXPERT, *FROM_EXPERT]
    stock = HANConv(channels, HIDDEN, (list(channels), edge_types), HEADS).double()
    ours = HANLayer(channels, HIDDEN, edge_types, HEADS, plain=True).double()
    ours.load_state_dict(stock.state_dict())
    expected = stock(graph.x, graph.edge_index)
    out = update_nodes(ours, graph.x, graph.edge_index, graph.batch)
    assert out.keys() == expected.keys() == channels.keys()
    for name, x in out.items():
        assert x.abs().max() > 0.1
        torch.testing.assert_close(x, expected[name])


@examples(25)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 8),
    slots=st.tuples(st.integers(0, 4), st.integers(0, 3)),
    layers=st.sampled_from([1, 2]),
    requests=st.sampled_from([REQUESTS, REQUESTS[:1], REQUESTS[1:]]),
    semantic=st.booleans(),
)
def test_dense_and_sparse_forms_agree(seed, n, slots, layers, requests, semantic):
    arrays, encoder = draw(seed, n=n, slots=slots), make_encoder(layers, requests=requests, semantic=semantic)
    sparse = embed_graph(encoder, cluster_graph(**arrays))
    assert_same(encoder(**arrays), [out.view(3, n, HIDDEN) for out in sparse])


def test_both_forms_have_the_same_gradients(encoder):
    arrays = draw(2)
    grads = []
    for out in (encoder(**arrays), embed_graph(encoder, cluster_graph(**arrays))):
        loss = sum(embedding.square().sum() for embedding in out)
        grads.append(torch.autograd.grad(loss, list(encoder.parameters())))
    assert_same(*grads)


def test_padding_experts_are_not_in_the_graph(encoder):
    arrays, mask = draw(3), torch.tensor([[1.0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]])
    sparse = embed_graph(encoder, cluster_graph(**arrays, expert_mask=mask))
    assert_same([out[mask > 0] for out in encoder(**arrays, expert_mask=mask)], sparse)


def test_each_request_is_with_its_expert():
    arrays = draw(4)
    graph = cluster_graph(**arrays)
    for name in REQUESTS:
        node, owner = graph.edge_index[name, "to", "expert"]
        assert len(node) == arrays[f"{name}_mask"].sum() == len(graph.x[name])
        torch.testing.assert_close(torch.bincount(owner, minlength=12).view(3, 4), arrays[f"{name}_mask"].sum(-1).long())
        assert (graph.batch[name] == owner // 4).all()
        assert (graph.edge_index["expert", "to", name] == torch.stack([owner, node])).all()


def test_without_the_arrived_request_is_the_graph_without_it(encoder):
    """As a layer of PyG would have it: the edge type is not there, rather than there without an edge."""
    graph = cluster_graph(**draw(12))
    without, _ = embed_graph(encoder, graph)
    edges = {key: index for key, index in graph.edge_index.items() if key != ("arrived", "to", "expert")}
    x = update_nodes(encoder.first, graph.x, edges, graph.batch)
    if encoder.second is not None:
        x = update_nodes(encoder.second, {name: y.relu() for name, y in x.items()}, edges, graph.batch)
    torch.testing.assert_close(without, x["expert"])


@pytest.fixture
def pooled():
    torch.manual_seed(3)
    return PooledHAN(*WIDTHS, HIDDEN, HEADS).double()


def test_the_stock_readout_cannot_tell_which_expert_is_loaded(pooled):
    arrays = draw(21)
    out = pooled(**arrays)
    assert out.shape == (3, HIDDEN)
    torch.testing.assert_close(pooled(**{key: x.flip(1) for key, x in arrays.items()}), out)
    assert not torch.allclose(pooled(**arrays | {"running": arrays["running"] + 1}), out, atol=1e-4)


def test_the_stock_readout_depends_on_the_rest_of_the_batch(pooled):
    arrays = draw(22)
    alone = pooled(**{key: x[:1] for key, x in arrays.items()})
    assert (pooled(**arrays)[:1] - alone).abs().max() > 1e-6
