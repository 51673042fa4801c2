import torch

from sightline.geometry.rotation import rotation_angle
from sightline.splatting.poses import PoseConfig, PoseRefinement
from tests.splatting.toy import make_cameras


def test_zero_vectors_change_nothing():
    cameras = make_cameras()
    refinement = PoseRefinement(PoseConfig(), cameras, 2.0)
    torch.testing.assert_close(refinement.cameras(cameras).w2c, cameras.w2c, atol=1e-5, rtol=0)


def test_the_translation_is_in_camera_axes_and_extents():
    cameras = make_cameras()
    refinement = PoseRefinement(PoseConfig(), cameras, 2.0)
    refinement.deltas[3, 2] = 0.25
    moved = refinement.cameras(cameras)
    ahead = cameras.c2w[3, :3, 2]
    torch.testing.assert_close(moved.centers[3], cameras.centers[3] + 0.5 * ahead)
    torch.testing.assert_close(moved.centers[2], cameras.centers[2])


def test_the_correction_stays_a_rotation():
    cameras = make_cameras()
    refinement = PoseRefinement(PoseConfig(), cameras, 1.0)
    refinement.deltas += 0.1 * torch.randn(8, 9)
    rotation = refinement.cameras(cameras).w2c[:, :3, :3]
    eye = torch.eye(3).expand(8, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=1e-5, rtol=0)


def test_steps_reduce_a_pose_error():
    cameras = make_cameras()
    refinement = PoseRefinement(PoseConfig(rate=1e-2, weight_decay=0.0), cameras, 1.0)
    refinement.deltas[0] = 0.05
    wanted = cameras.w2c[0]
    for _ in range(60):
        leaf = refinement.leaf(0)
        error = (refinement.corrected(cameras.w2c[0], leaf) - wanted).square().sum()
        error.backward()
        refinement.step(0, leaf.grad, 1.0)
    final = refinement.cameras(cameras).w2c[0]
    assert rotation_angle(final[:3, :3], wanted[:3, :3]) < 0.02
    assert (refinement.deltas[1:] == 0).all()
