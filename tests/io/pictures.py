"""Tiny pictures made for the tests: HEIC needs an encoder that no test dependency has."""

import base64

import numpy as np
from PIL import Image

# 64 x 48 as seen by a viewer before any rotation: red, green / blue, yellow quarters; made by us.
HEIC_UPRIGHT = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAb5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB4gABAAAAAAAAATUAAgAAAAADFwABAAAAAAAAAGoAAAA4aWluZgAA"
    "AAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA/Wlwcn"
    "AAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroC"
    "QGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm"
    "5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQ"
    "ABAAABp21kYXQAAAExKAGvBPjb8uiWt/0Z1///K3+//j23LfcsgvAfjJGl/Dnn/+g7qeEcUvU9JXYZ/6wVWUYMrQbk"
    "rzv4riU9xsxVLlKd2ty1qwSRZBfPaacLIwEVoPPTLhSgd+8f2bhMTvdOlvJzSgPJtzI/zk///fev/++Iv61zcDEu+9"
    "/D/wOZ16m2EY9bMO/EmV/gcWFvdveyZf9uI7kVTV2CnJrlRxlV8TbpL8sg/JAwqjZz44xO/YY5p2mmbLOPVSf2DlVH"
    "qEHySjBbBVflJ8fCZUNgGaN+loUuZXeYf2Dx51sjg1cg+JGJ0t96j5T0orXwtGY73pCAa9Dbdy7bVRNDlkIopIjVCL"
    "Zi36+Q5OaoOgbng+C8jyN+IsGl3YLSzcrHdbvVPBKWfolG6m4vdG6IJv8bjq3XluAAAAAGRXhpZgAATU0AKgAAAAgA"
    "BAEPAAIAAAAGAAAAPgEQAAIAAAAKAAAARAESAAMAAAABAAEAAIdpAAQAAAABAAAATgAAAABBcHBsZQBpUGhvbmUgMT"
    "IAAAGkBQADAAAAAQAaAAAAAAAA"
)
# The same pixels with orientation 6 (stored as a rotation property): shown as 48 x 64.
HEIC_TURNED = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAATUAAgAAAAADIQABAAAAAAAAAGoAAAA4aWluZgAA"
    "AAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcn"
    "AAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroC"
    "QGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm"
    "5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAA"
    "AOY2RzYwACAAEAAQAAAadtZGF0AAABMSgBrwT42/Lolrf9Gdf//yt/v/49ty33LILwH4yRpfw55//oO6nhHFL1PSV2"
    "Gf+sFVlGDK0G5K87+K4lPcbMVS5SndrctasEkWQXz2mnCyMBFaDz0y4UoHfvH9m4TE73Tpbyc0oDybcyP85P//33r/"
    "/viL+tc3AxLvvfw/8DmdepthGPWzDvxJlf4HFhb3b3smX/biO5FU1dgpya5UcZVfE26S/LIPyQMKo2c+OMTv2GOadp"
    "pmyzj1Un9g5VR6hB8kowWwVX5SfHwmVDYBmjfpaFLmV3mH9g8edbI4NXIPiRidLfeo+U9KK18LRmO96QgGvQ23cu21"
    "UTQ5ZCKKSI1Qi2Yt+vkOTmqDoG54PgvI8jfiLBpd2C0s3Kx3W71TwSln6JRupuL3RuiCb/G46t15bgAAAABkV4aWYA"
    "AE1NACoAAAAIAAQBDwACAAAABgAAAD4BEAACAAAACgAAAEQBEgADAAAAAQAGAACHaQAEAAAAAQAAAE4AAAAAQXBwbG"
    "UAaVBob25lIDEyAAABpAUAAwAAAAEAGgAAAAAAAA=="
)


def quarters(height: int = 48, width: int = 64) -> np.ndarray:
    """Return red, green / blue, yellow quarters: every orientation looks different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left] = (255, 0, 0)
    pixels[:top, left:] = (0, 255, 0)
    pixels[top:, :left] = (0, 0, 255)
    pixels[top:, left:] = (255, 255, 0)
    return pixels


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random colour texture with detail at many scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for scale in (2, 4, 8, 16, 32):
        size = (width // scale + 2, height // scale + 2)
        noise = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        total += np.asarray(
            Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        )
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low) * 255, 0, 255).astype(np.uint8)
