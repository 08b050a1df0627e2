"""Fixtures of the tests that start Ray nodes."""

import pytest

from tests.cluster.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes of one core each. Nothing of it may be left in the end."""
    cluster = LocalCluster()
    try:
        cluster.start("head")
        cluster.start("worker")
        yield cluster
    finally:
        left = cluster.stop()
    assert left == []


@pytest.fixture
def own_cluster():
    """A cluster whose nodes a test starts, and kills."""
    cluster = LocalCluster()
    try:
        yield cluster
    finally:
        left = cluster.stop()
    assert left == []
