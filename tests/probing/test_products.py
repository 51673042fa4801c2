import numpy as np
import pytest

from sightline.probing.products import WIDE, add_product, gate_product, relu_product


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("transposed", [False, True])
def test_products_equal_numpy(rows: int, transposed: bool) -> None:
    rng = np.random.default_rng(rows)
    columns, depth = 2 * WIDE, 5
    a = rng.normal(size=(rows, depth)).astype(np.float32)
    b = rng.normal(size=(depth, columns)).astype(np.float32)
    before = rng.normal(size=(rows, columns)).astype(np.float32)
    held = a.T.copy() if transposed else a
    steps = (1, rows) if transposed else (depth, 1)
    wanted = a @ b
    for product, expected in (
        (add_product, before + wanted),
        (relu_product, wanted.clip(0)),
        (gate_product, np.where(before > 0, wanted, 0)),
    ):
        # With room around, which must stay as it was.
        c = np.full((rows + 1, columns + WIDE), 7, np.float32)
        c[:rows, :columns] = before
        product(
            c.reshape(-1), 0, columns + WIDE, held.reshape(-1), 0, *steps, b.reshape(-1), 0,
            columns, rows, columns, depth,
        )  # fmt: skip
        np.testing.assert_allclose(c[:rows, :columns], expected, rtol=1e-5, atol=1e-5)
        assert (c[rows] == 7).all()
        assert (c[:, columns:] == 7).all()


def test_nothing_to_multiply_is_zero() -> None:
    c = np.ones(WIDE, np.float32)
    a = np.ones(1, np.float32)
    relu_product(c, 0, WIDE, a, 0, 1, 1, np.ones(WIDE, np.float32), 0, WIDE, 1, WIDE, 0)
    assert (c == 0).all()
