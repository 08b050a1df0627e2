"""Who asks: bearer tokens against the hashes of the configuration, in a time that tells nothing of them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from gateway.config import TenantEntry
from gateway.server.replies import Refused


class Keys:
    """The keys of all tenants. Without tenants nobody is asked for one."""

    def __init__(self, tenants: Sequence[TenantEntry]) -> None:
        self._hashes = [
            (bytes.fromhex(key.removeprefix("sha256:")), index) for index, tenant in enumerate(tenants) for key in tenant.keys
        ]

    def tenant(self, authorization: bytes | None) -> int | None:
        """Index of the tenant that a header ``Authorization`` belongs to; None where nobody is asked.

        Raises:
            Refused: 401, no key or one that is nobody's.
        """
        if not self._hashes:
            return None
        scheme, _, key = (authorization or b"").partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        found = [index for known, index in self._hashes if hmac.compare_digest(known, given)]  # looks at all of them
        if scheme.lower() != b"bearer" or not found:
            raise Refused(401, "invalid_api_key", "no key, or one that is not known: send Authorization: Bearer KEY")
        return found[0]
