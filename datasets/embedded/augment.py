"""Random pictures from RGBA artwork, a whole batch at a time: line art, shape, colour, background, blur and noise.

Colours are premultiplied by alpha and lie in [0, 1], so every colour change is one 4 x 4 matrix and compositing is one
addcmul.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


class Strength(NamedTuple):
    """Strength of each augmentation. Probabilities in [0, 1]; the rest are half-widths or maxima."""

    scale: tuple[float, float] = (0.55, 1.1)  # of the artwork in the picture
    aspect: float = 0.15  # log of the ratio of the edges
    rotation: float = 0.3  # radians
    shear: float = 0.15
    shift: float = 0.15  # of half the picture
    flip: float = 0.5
    line_art: float = 0.22  # colour artwork turned into line art or silhouettes
    outline: float = 0.12  # colour artwork with dark contours added
    gray: float = 0.12
    color: float = 0.35  # brightness, contrast, saturation
    recolor: float = 0.75  # line art in its own colour, dark on light or light on dark
    busy: float = 0.75  # background in any colour, not almost white
    gradient: float = 0.5
    blur: float = 0.12
    noise: float = 0.04  # largest standard deviation

    def scaled(self, amount: float) -> "Strength":
        """Weaker by `amount` in [0, 1]: at 0 nothing but a mild affine change."""
        low, high = self.scale
        mild = 0.25 + 0.75 * amount
        weaker = {name: getattr(self, name) * amount for name in self._fields[6:]}
        shape = {name: getattr(self, name) * mild for name in ("aspect", "rotation", "shear", "shift")}
        return Strength(scale=(1 - (1 - low) * mild, 1 + (high - 1) * amount), flip=self.flip, **shape, **weaker)


def contours(images: Tensor) -> Tensor:
    """Line art of colour artwork: uint8 opacity of the ink, four ways.

    Args:
        images: (B, 4, S, S) uint8 premultiplied RGBA.

    Returns:
        (B, 4, S, S) uint8: thin contours, thick contours, dark parts, light parts.
    """
    x = images.float() / 255
    luma = torch.tensor(_LUMA, device=x.device).view(1, 3, 1, 1)
    alpha = x[:, 3:]
    on_gray = x[:, :3] + 0.5 * (1 - alpha)  # (B, 3, S, S)
    planes = torch.cat([on_gray, alpha], 1)
    thin = _gradient(planes, 3)
    thick = F.max_pool2d(thin, 3, 1, 1)
    light = (on_gray * luma).sum(1, keepdim=True)
    middle = (light * alpha).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp_min(1e-6)
    dark_part = torch.sigmoid((middle - 0.08 - light) * 25) * alpha
    light_part = torch.sigmoid((light - middle - 0.02) * 25) * alpha
    ink = torch.cat([thin, thick, torch.maximum(dark_part, 0.8 * thin), light_part], 1)
    return (ink * 255).round().to(torch.uint8)


def _gradient(planes: Tensor, kernel: int) -> Tensor:
    """Strongest morphological gradient over the planes, stretched to full ink at a clear edge: (B, 1, S, S)."""
    padding = kernel // 2
    high = F.max_pool2d(planes, kernel, 1, padding)
    low = -F.max_pool2d(-planes, kernel, 1, padding)
    return ((high - low).amax(1, keepdim=True) * 2.2 - 0.35).clamp(0, 1)


class Artist:
    """Makes training pictures.

    Args:
        size: edge of the pictures in pixels.
        mean, std: channel normalisation of the pictures.
        strength: full strength of the changes.
        device: where pictures are made.
    """

    def __init__(
        self, size: int, mean: list[float], std: list[float], strength: Strength, device: torch.device
    ) -> None:
        self.size, self.strength, self.device = size, strength, device
        self.mean = torch.tensor(mean, device=device)
        self.std = torch.tensor(std, device=device)
        bank = torch.randn(32, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.noise_bank = (bank / self.std.cpu().view(3, 1, 1)).to(device)

    def __call__(
        self, art: Tensor, ink: Tensor, mono: Tensor, upright: Tensor, amount: float, generator: torch.Generator
    ) -> Tensor:
        """Normalised pictures (B, 3, size, size) float32.

        Args:
            art: (B, 4, S, S) uint8 premultiplied RGBA on `device`.
            ink: (B, 1, S, S) uint8 line art of the same drawings.
            mono: (B,) bool, the artwork is black line art already.
            upright: (B,) bool, never mirrored and hardly turned (arrows, clocks, letters).
            amount: strength in [0, 1].
            generator: CPU generator of all random numbers.
        """
        strength, n = self.strength.scaled(amount), len(art)
        draw = torch.rand(n, 40, generator=generator)
        x = art.to(torch.float32).mul_(1 / 255)
        as_lines = ~mono & (draw[:, 0] < strength.line_art)
        outlined = ~mono & ~as_lines & (draw[:, 0] < strength.line_art + strength.outline)
        _add_ink(x, ink, as_lines, outlined)
        mono = mono | as_lines
        theta = _affine(draw[:, 1:8], upright, strength).to(self.device)
        grid = F.affine_grid(theta, [n, 4, self.size, self.size], align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        matrix, corner = self._colors(draw[:, 8:34], mono, strength)
        x = torch.bmm(matrix.to(self.device), x.flatten(2)).view(n, 4, self.size, self.size)
        picture = torch.addcmul(x[:, :3], self._background(corner, draw[:, 34:36]), 1 - x[:, 3:])  # (B, 3, S, S)
        self._degrade(picture, draw[:, 36:40], strength)
        low, high = ((value - self.mean) / self.std for value in (0.0, 1.0))
        return picture.clamp_(low.view(3, 1, 1), high.view(3, 1, 1))

    def _colors(self, draw: Tensor, mono: Tensor, strength: Strength) -> tuple[Tensor, Tensor]:
        """Matrix (B, 4, 4) on premultiplied RGBA, and the two background colours (B, 2, 3), both normalised."""
        n = len(draw)
        mean, std = self.mean.cpu(), self.std.cpu()
        light = 0.88 + 0.12 * draw[:, 0:1].expand(n, 3)
        corner = torch.where((draw[:, 1] < strength.busy)[:, None], draw[:, 2:5], light)
        second = corner + 0.8 * (draw[:, 5:8] - 0.5) * (draw[:, 8:9] < strength.gradient)
        # colour artwork: saturation towards luma, contrast around the middle, brightness
        luma = torch.tensor(_LUMA).expand(n, 3, 3)
        saturation = 1 + strength.color * (3 * draw[:, 9] - 1.8)
        saturation = torch.where(draw[:, 10] < strength.gray, 0.0, saturation.clamp_min(0))[:, None, None]
        contrast = (1 + strength.color * (1.4 * draw[:, 11] - 0.8))[:, None, None]
        tint = strength.color * 0.3 * (draw[:, 12:15] - 0.5) + strength.color * 0.6 * (draw[:, 15:16] - 0.5)
        color = contrast * (saturation * torch.eye(3) + (1 - saturation) * luma)  # (B, 3, 3)
        offset = tint + 0.5 * (1 - contrast[:, 0])
        # line art: one ink that stands out from the background
        recolored = draw[:, 16] < strength.recolor
        dark = 0.35 * draw[:, 17:20] * draw[:, 20:21]
        on_dark = recolored & (draw[:, 21] < 0.4)
        dark_ink = torch.where(recolored[:, None], dark, torch.zeros(n, 3))
        light_ink = 1 - 0.35 * draw[:, 17:20]
        ink = torch.where(on_dark[:, None], light_ink, dark_ink)
        # paper of line art is pushed to the other side of the ink
        spread = second - corner
        goal = torch.where(on_dark[:, None], 0.55 * corner, 1 - 0.5 * (1 - corner))
        corner = torch.where(mono[:, None], goal, corner)
        second = torch.where(mono[:, None], goal + 0.4 * spread, second)
        color = torch.where(mono[:, None, None], torch.zeros(3, 3), color)
        offset = torch.where(mono[:, None], ink, offset)
        matrix = torch.zeros(n, 4, 4)
        matrix[:, :3, :3] = color / std[:, None]
        matrix[:, :3, 3] = (offset - mean) / std
        matrix[:, 3, 3] = 1
        corners = torch.stack([corner, second], 1).clamp(0, 1)
        return matrix, (corners - mean) / std

    def _background(self, corner: Tensor, draw: Tensor) -> Tensor:
        """Linear gradients (B, 3, size, size) between two colours along a random direction."""
        corner = corner.to(self.device)
        angle = draw[:, 0] * 2 * math.pi
        reach = 0.7 + draw[:, 1]
        direction = torch.stack([angle.cos(), angle.sin()], 1).mul(0.5 / reach[:, None]).to(self.device)
        axis = torch.linspace(-1, 1, self.size, device=self.device)
        position = direction[:, 0, None, None] * axis + direction[:, 1, None, None] * axis[:, None]  # (B, S, S)
        position = position.add_(0.5).clamp_(0, 1)[:, None]
        span = (corner[:, 1] - corner[:, 0])[:, :, None, None]
        return torch.addcmul(corner[:, 0][:, :, None, None], span, position)

    def _degrade(self, picture: Tensor, draw: Tensor, strength: Strength) -> None:
        """Blur or noise on some pictures, in place."""
        soft = (draw[:, 0] < strength.blur).nonzero()[:, 0].to(self.device)
        if len(soft):
            part = picture[soft]
            amount = draw[:, 1].to(self.device)[soft].view(-1, 1, 1, 1)
            blurred = F.avg_pool2d(F.pad(part, (1, 1, 1, 1), mode="replicate"), 3, 1)
            picture[soft] = torch.lerp(part, blurred, amount)
        noisy = (draw[:, 2] < 0.3 * (strength.noise > 0)).nonzero()[:, 0].to(self.device)
        if len(noisy):
            amount = strength.noise * draw[:, 3].to(self.device)[noisy].view(-1, 1, 1, 1)
            which = (draw[:, 1].to(self.device)[noisy] * len(self.noise_bank)).long()
            picture[noisy] = picture[noisy].addcmul_(self.noise_bank[which], amount)


def _add_ink(x: Tensor, ink: Tensor, as_lines: Tensor, outlined: Tensor) -> None:
    """Replace drawings by their line art, or darken their contours; in place on (B, 4, S, S)."""
    rows = as_lines.nonzero()[:, 0].to(x.device)
    if len(rows):
        x[rows, :3] = 0
        x[rows, 3] = ink[rows, 0].to(torch.float32) / 255
    rows = outlined.nonzero()[:, 0].to(x.device)
    if len(rows):
        opacity = ink[rows].to(torch.float32) / 255
        x[rows] = torch.cat([x[rows, :3] * (1 - opacity), torch.maximum(x[rows, 3:], opacity)], 1)


def _affine(draw: Tensor, upright: Tensor, strength: Strength) -> Tensor:
    """Inverse affine matrices (B, 2, 3) for affine_grid."""
    low, high = strength.scale
    scale = low + (high - low) * draw[:, 0]
    aspect = torch.exp(strength.aspect * (draw[:, 1] - 0.5))
    angle = strength.rotation * (2 * draw[:, 2] - 1) * torch.where(upright, 0.25, 1.0)
    shear = strength.shear * (2 * draw[:, 3] - 1) * torch.where(upright, 0.25, 1.0)
    mirror = torch.where((draw[:, 4] < strength.flip) & ~upright, -1.0, 1.0)
    room = (1 - scale).abs() + strength.shift * 0.3
    shift_x, shift_y = (room * (2 * draw[:, column] - 1) for column in (5, 6))
    width, height = scale * aspect, scale / aspect
    cos, sin = angle.cos(), angle.sin()
    # picture -> artwork: undo the shift, turn, shear, then scale
    row_x = torch.stack([cos + shear * sin, sin - shear * cos], 1) * (mirror / width)[:, None]
    row_y = torch.stack([-sin, cos], 1) / height[:, None]
    linear = torch.stack([row_x, row_y], 1)  # (B, 2, 2)
    offset = -(linear @ torch.stack([shift_x, shift_y], 1)[:, :, None])
    return torch.cat([linear, offset], 2)
