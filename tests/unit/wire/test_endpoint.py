# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.wire.endpoint import Endpoint


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 65535))
def test_text_form_is_read_back(ip, port) -> None:  # type: ignore[no-untyped-def]
    endpoint = Endpoint.of(str(ip), port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "1.2.3.4:", "::1:5", "1.2.3.4:70000", "a:1", "1.2.3.4:-1", "[1.2.3.4:1"]
)
def test_other_forms_are_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Endpoint.parse(text)
