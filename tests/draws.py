"""How property tests draw their examples: the same ones in every run, or new ones for as long as one likes.

``make test`` and CI use the profile ``fixed``, ``make fuzz`` the profile ``fuzz``. ``make quick`` uses ``fixed`` with a tenth of
the examples. A test asks for a number of examples by ``@examples(count)`` and leaves everything else to the profile.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.internal.conjecture import providers

FUZZ_EXAMPLES = "EDGEROUTE_EXAMPLES"
"""Environment variable: examples of every property test under the profile ``fuzz``."""

QUICK = "EDGEROUTE_QUICK"
"""Environment variable: if it is set, a fixed run draws a tenth of the examples."""

_QUICK_SHARE, _QUICK_LEAST = 10, 3
_USUAL = 100  # examples of a property test that asks for no number
_constants_of_imported_modules = providers._get_local_constants
_NO_CONSTANTS = providers._local_constants  # as it is imported: it is replaced, not filled
_cached_for: list[bool] = [True]


def _constants() -> providers.Constants:
    """None in a fixed run: the modules imported so far, whose constants Hypothesis also draws, depend on the tests before."""
    fixed = settings.default.derandomize
    if _cached_for != [fixed]:  # what Hypothesis keeps of constants is of the other profile
        providers.CONSTANTS_CACHE.cache.clear()
        _cached_for[:] = [fixed]
    return _NO_CONSTANTS if fixed else _constants_of_imported_modules()


def register_profiles() -> None:
    """Make both profiles known to ``--hypothesis-profile`` and load ``fixed``.

    A busy machine draws slowly, which is no fault of a test: time limits and the check of drawing time are off.
    """
    providers._get_local_constants = _constants
    fixed = settings(
        max_examples=_in_a_fixed_run(_USUAL),
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile("fixed", fixed)
    settings.register_profile(
        "fuzz",
        fixed,
        derandomize=False,
        max_examples=int(os.environ.get(FUZZ_EXAMPLES, "1000")),
        database=DirectoryBasedExampleDatabase(".hypothesis/examples"),  # what failed comes first in the next round
    )
    settings.load_profile("fixed")


def examples(count: int) -> settings:
    """Decorator of a property test: ``count`` examples in a fixed run, as many as the profile says otherwise."""
    if not settings.default.derandomize:
        return settings(max_examples=settings.default.max_examples)
    return settings(max_examples=_in_a_fixed_run(count))


def _in_a_fixed_run(count: int) -> int:
    return max(count // _QUICK_SHARE, _QUICK_LEAST) if os.environ.get(QUICK) else count
