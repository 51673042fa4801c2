import torch

from sightline.metrics.lpips import Lpips
from sightline.metrics.splatt3r import official_mse
from sightline.training.splatt3r.losses import bounds_loss, splatt3r_loss, structure_loss
from tests.training.splatt3r import small


def guess(batch):
    torch.manual_seed(0)
    side = batch.size[0]
    first = {"pts3d": batch.points[:, 0] + 0.1 * torch.randn(2, side, side, 3)}
    second = {"pts3d_in_other_view": batch.points[:, 1] + 0.1 * torch.randn(2, side, side, 3)}
    for result in (first, second):
        result["conf"] = 1 + torch.rand(2, side, side)
        result["scales"] = torch.full((2, side, side, 3), 0.01)
    first["means"] = first["pts3d"] + 0.01
    second["means_in_other_view"] = second["pts3d_in_other_view"] - 0.01
    return first, second


def test_parts_and_weights() -> None:
    batch = small.pairs()
    drawn = torch.rand_like(batch.targets)
    results = guess(batch)
    chosen = small.settings(mse=2.0, perceptual=0.5, points=0.1)
    found = splatt3r_loss(drawn, batch, results, chosen)
    torch.testing.assert_close(found.mse, 2 * official_mse(drawn, batch.targets, batch.masks))
    look = structure_loss(drawn, batch.targets, batch.masks)
    torch.testing.assert_close(found.perceptual, 0.5 * look)
    torch.testing.assert_close(found.loss, found.mse + found.perceptual + found.points)
    assert found.bounds == 0  # nothing is large
    more = splatt3r_loss(drawn, batch, results, small.settings(points=0.2))
    torch.testing.assert_close(more.points, 2 * found.points)


def test_only_gaussians_that_leave_are_held_back() -> None:
    batch = small.pairs()
    first, second = guess(batch)
    assert bounds_loss(first, second) == 0
    huge = first["scales"].clone()
    huge[0, 3, 4, 1] = 1e8
    huge.requires_grad_()
    far = (second["means_in_other_view"] + 0).requires_grad_()
    with torch.no_grad():
        far[1, 5, 6] += 1e5
    lost = bounds_loss(first | {"scales": huge}, second | {"means_in_other_view": far})
    lost.backward()
    assert huge.grad is not None
    assert far.grad is not None
    assert huge.grad[0, 3, 4, 1] > 0
    assert (far.grad[1, 5, 6] > 0).all()
    assert int((huge.grad != 0).sum()) == 1
    assert int((far.grad != 0).sum()) == 3
    assert huge.grad.isfinite().all()


def test_lpips_sees_masked_pictures() -> None:
    batch = small.pairs()
    torch.manual_seed(0)
    lpips = Lpips("alex")
    torch.nn.init.uniform_(lpips.get_parameter("lin0.model.1.weight"))
    drawn = torch.rand_like(batch.targets)
    one = splatt3r_loss(drawn, batch, guess(batch), small.settings(), lpips).perceptual
    hidden = torch.where(batch.masks[:, :, None], drawn, torch.rand_like(drawn))
    other = splatt3r_loss(hidden, batch, guess(batch), small.settings(), lpips).perceptual
    torch.testing.assert_close(one, other)
    assert one > 0


def test_the_substitute_prefers_what_looks_alike() -> None:
    batch = small.pairs(64)
    target, masks = batch.targets, batch.masks
    assert structure_loss(target, target, masks) < 1e-6
    torch.manual_seed(0)
    noisy = target + 0.03 * torch.randn_like(target)
    noisier = target + 0.2 * torch.randn_like(target)
    blurred = torch.nn.functional.avg_pool2d(target.flatten(0, 1), 5, 1, 2).view_as(target)
    losses = [float(structure_loss(x, target, masks)) for x in (noisy, noisier, blurred)]
    assert losses[0] < losses[1]
    assert 0.05 < losses[2] < 2
    shuffled = target[:, :, :, torch.randperm(64)]
    assert structure_loss(shuffled, target, masks) > losses[2]
    hidden = torch.where(masks[:, :, None], noisy, 0.0)
    torch.testing.assert_close(structure_loss(hidden, target, masks).item(), losses[0])


def test_the_substitute_has_gradients_everywhere_it_counts() -> None:
    batch = small.pairs()
    drawn = torch.full_like(batch.targets, 0.5).requires_grad_()
    structure_loss(drawn, batch.targets, batch.masks).backward()
    assert drawn.grad is not None
    assert drawn.grad.isfinite().all()
    shown = batch.masks[:, :, None].expand_as(drawn)
    assert (drawn.grad[~shown] == 0).all()
    assert (drawn.grad[shown] != 0).float().mean() > 0.9
