"""Layer lists of published networks whose latencies stand in the reference tables.

Latency tables name a network and give no graph. These are the graphs, written down layer by layer
from the papers and public definitions, batch norm folded and ReLU fused. A unit test holds some
against torchvision's own graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.bench.layers import Layer

__all__ = ["NETWORKS", "Net"]


class Net:
    """Builds a layer list; the state is the tensor that the next layer reads."""

    def __init__(self, channels: int, height: int, width: int | None = None) -> None:
        self.c, self.h, self.w = channels, height, height if width is None else width
        self.layers: list[Layer] = []

    @property
    def size(self) -> int:
        return self.c * self.h * self.w

    def conv(
        self,
        out: int,
        k: int | tuple[int, int] = 1,
        s: int = 1,
        g: int = 1,
        pad: str = "same",
        act: bool = False,
    ) -> Net:
        """A convolution; ``act``: an activation behind it that kernels do not fuse."""
        kh, kw = (k, k) if isinstance(k, int) else k
        h, w = (-(-self.h // s), -(-self.w // s))
        if pad == "valid":
            h, w = ((self.h - kh) // s + 1, (self.w - kw) // s + 1)
        elif pad == "floor":  # symmetric padding of k // 2
            h = (self.h + 2 * (kh // 2) - kh) // s + 1
            w = (self.w + 2 * (kw // 2) - kw) // s + 1
        self.layers.append(
            Layer.conv(f"conv{len(self.layers)}", self.c, out, (kh, kw), s, g, (h, w), self.size)
        )
        self.c, self.h, self.w = out, h, w
        return self.act() if act else self

    def dw(self, k: int = 3, s: int = 1, act: bool = False, pad: str = "same") -> Net:
        return self.conv(self.c, k, s, self.c, pad=pad, act=act)

    def act(self) -> Net:
        return self.other("elementwise", self.size, self.size)

    def add(self) -> Net:
        return self.other("elementwise", 2 * self.size, self.size)

    def other(self, kind: str, read: int, written: int) -> Net:
        self.layers.append(Layer.other(f"{kind}{len(self.layers)}", kind, read, written))
        return self

    def pool(self, k: int = 2, s: int = 2, pad: str = "same") -> Net:
        before = self.size
        if pad == "valid":
            self.h, self.w = (self.h - k) // s + 1, (self.w - k) // s + 1
        elif pad == "ceil":  # no padding, the last window may hang over
            self.h, self.w = -(-(self.h - k) // s) + 1, -(-(self.w - k) // s) + 1
        else:
            self.h, self.w = -(-self.h // s), -(-self.w // s)
        return self.other("pool", before, self.size)

    def globally(self) -> Net:
        before = self.size
        self.h = self.w = 1
        return self.other("pool", before, self.size)

    def fc(self, out: int, act: bool = False, rows: int = 1, inp: int | None = None) -> Net:
        n = self.size if inp is None else inp
        self.layers.append(Layer.linear(f"fc{len(self.layers)}", n, out, rows))
        self.c, self.h, self.w = out, 1, rows
        return self.act() if act else self

    def se(self, squeezed: int) -> Net:
        """Squeeze and excitation."""
        c, h, w = self.c, self.h, self.w
        self.globally().conv(squeezed).conv(c, act=True)
        self.c, self.h, self.w = c, h, w
        return self.other("elementwise", self.size, self.size)

    def side(self, build: Callable[[Net], object]) -> Net:
        """A branch whose result leaves the main line (a head); the state stays."""
        c, h, w = self.c, self.h, self.w
        build(self)
        self.c, self.h, self.w = c, h, w
        return self

    def cat(self, builds: Sequence[Callable[[Net], object]]) -> Net:
        """Branches from here, concatenated."""
        c, h, w = self.c, self.h, self.w
        total = 0
        for build in builds:
            self.c, self.h, self.w = c, h, w
            build(self)
            total += self.c
        self.c = total
        return self.other("move", self.size, self.size)


def _w(channels: float, divisor: int = 8) -> int:
    """Channels rounded as the MobileNets round them."""
    new = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return new + divisor if new < 0.9 * channels else new


_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


def mobilenet_v1_body(net: Net, width: float = 1.0, upto: int = 13) -> Net:
    net.conv(int(32 * width), 3, 2)
    for out, stride in _V1[:upto]:
        net.dw(3, stride).conv(int(out * width))
    return net


def mobilenet_v1(width: float = 1.0, size: int = 224) -> Net:
    return mobilenet_v1_body(Net(3, size), width).globally().fc(1000)


def _inverted(
    net: Net,
    expand: float,
    out: int,
    k: int,
    s: int,
    act: bool = False,
    se: int = 0,
    always: bool = False,
) -> None:
    c, h = net.c, net.h
    hidden = round(c * expand)
    if hidden != c or always:
        net.conv(hidden, act=act)
    net.dw(k, s, act=act)
    if se:
        net.se(se)
    net.conv(out)
    if s == 1 and c == out and h == net.h:
        net.add()


_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2_body(net: Net, width: float = 1.0, always: bool = False) -> Net:
    net.conv(_w(32 * width), 3, 2)
    for t, c, n, s in _V2:
        for i in range(n):
            _inverted(net, t, _w(c * width), 3, s if i == 0 else 1, always=always)
    return net


def mobilenet_v2(width: float = 1.0, size: int = 224, always: bool = False) -> Net:
    """``always``: the first block expands too, by one, as in the form that came from Caffe."""
    net = mobilenet_v2_body(Net(3, size), width, always)
    return net.conv(_w(1280 * max(1.0, width))).globally().fc(1000)


_V3L = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip
_V3S = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
)  # fmt: skip


# As the paper's first version had it (arXiv 1905.02244v1): the stride of 2 comes a block later.
_V3L_FIRST = (*_V3L[:12], (5, 672, 160, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1))


def mobilenet_v3(
    small: bool = False,
    width: float = 1.0,
    size: int = 224,
    minimal: bool = False,
    first: bool = False,
) -> Net:
    net = Net(3, size).conv(_w(16 * width), 3, 2, act=not minimal)
    for k, hidden, out, se, hs, s in _V3S if small else _V3L_FIRST if first else _V3L:
        c = net.c
        wide = _w(hidden * width)
        squeeze = _w(wide / 4) if se and not minimal else 0
        _inverted(
            net,
            wide / c,
            _w(out * width),
            3 if minimal else k,
            s,
            bool(hs) and not minimal,
            squeeze,
        )
    last = _w((576 if small else 960) * width)
    net.conv(last, act=not minimal).globally().fc(1024 if small else 1280, act=not minimal)
    return net.fc(1000)


def _fire(net: Net, squeeze: int, expand: int) -> None:
    net.conv(squeeze).cat([lambda n: n.conv(expand), lambda n: n.conv(expand, 3)])


def squeezenet_body(net: Net) -> Net:
    net.conv(64, 3, 2, pad="valid").pool(3, 2, "ceil")
    _fire(net, 16, 64)
    _fire(net, 16, 64)
    net.pool(3, 2, "ceil")
    _fire(net, 32, 128)
    _fire(net, 32, 128)
    return net


def squeezenet(size: int = 227) -> Net:
    net = squeezenet_body(Net(3, size)).pool(3, 2, "ceil")
    for s, e in ((48, 192), (48, 192), (64, 256), (64, 256)):
        _fire(net, s, e)
    net.h, net.w = net.h + 2, net.w + 2  # the last convolution is padded, 1x1 as it is
    return net.conv(1000).globally()


def squeezenet_v10(size: int = 224) -> Net:
    net = Net(3, size).conv(96, 7, 2, pad="valid").pool(3, 2, "ceil")
    for s, e in ((16, 64), (16, 64), (32, 128)):
        _fire(net, s, e)
    net.pool(3, 2, "ceil")
    for s, e in ((32, 128), (48, 192), (48, 192), (64, 256)):
        _fire(net, s, e)
    net.pool(3, 2, "ceil")
    _fire(net, 64, 256)
    return net.conv(1000).globally()


def _heads(net: Net, boxes: int, classes: int, k: int = 1) -> None:
    net.side(lambda n: n.conv(boxes * 4, k))
    net.side(lambda n: n.conv(boxes * classes, k))


def mobilenet_ssd(size: int = 300) -> Net:
    net = mobilenet_v1_body(Net(3, size), upto=11)
    _heads(net, 3, 21)
    for out, s in _V1[11:]:
        net.dw(3, s).conv(out)
    _heads(net, 6, 21)
    for squeeze, out in ((256, 512), (128, 256), (128, 256), (64, 128)):
        net.conv(squeeze).conv(out, 3, 2)
        _heads(net, 6, 21)
    return net.other("elementwise", 1917 * 25, 1917 * 25)


def squeezenet_ssd(size: int = 300) -> Net:
    net = squeezenet_body(Net(3, size))
    _heads(net, 4, 21, 3)
    net.pool(3, 2, "ceil")
    for s, e in ((48, 192), (48, 192), (64, 256), (64, 256)):
        _fire(net, s, e)
    _heads(net, 6, 21, 3)
    net.pool(3, 2, "ceil")
    _fire(net, 96, 384)
    _fire(net, 96, 384)
    _heads(net, 6, 21, 3)
    for squeeze, out in ((128, 256), (64, 128), (64, 128)):
        net.conv(squeeze).conv(out, 3, 2)
        _heads(net, 6, 21, 3)
    return net.other("elementwise", 4000 * 25, 4000 * 25)


def mobilenet_yolo(size: int = 416) -> Net:
    net = mobilenet_v1_body(Net(3, size))
    net.dw().conv(1024).dw().conv(1024)
    net.side(lambda n: n.conv(75))
    # Up again to the stride of 16, with the layer that was there.
    net.other("move", net.size, 4 * net.size // 2)
    net.c, net.h, net.w = 512, net.h * 2, net.w * 2
    net.add().dw().conv(1024)
    return net.conv(75)


def mobilenetv2_yolov3(size: int = 352) -> Net:
    net = mobilenet_v2_body(Net(3, size), always=True).conv(1280).dw().conv(576)
    net.dw().conv(576)
    net.side(lambda n: n.conv(75))
    net.other("move", net.size, 4 * net.size)
    net.h, net.w, net.c = net.h * 2, net.w * 2, 384
    net.add().dw().conv(384).dw().conv(384)
    return net.conv(75)


def proxylessnasnet(size: int = 224) -> Net:
    net = Net(3, size).conv(32, 3, 2)
    rows = (
        (1, 16, 3, 1), (3, 32, 5, 2), (3, 32, 3, 1), (3, 40, 7, 2), (3, 40, 3, 1), (3, 40, 5, 1),
        (3, 40, 5, 1), (6, 80, 7, 2), (3, 80, 5, 1), (3, 80, 5, 1), (3, 80, 5, 1), (6, 96, 5, 1),
        (3, 96, 5, 1), (3, 96, 5, 1), (3, 96, 5, 1), (6, 192, 7, 2), (6, 192, 7, 1),
        (3, 192, 7, 1), (3, 192, 7, 1), (6, 320, 7, 1),
    )  # fmt: skip
    for t, c, k, s in rows:
        _inverted(net, t, c, k, s, always=True)
    return net.conv(1280).globally().fc(1000)


def mnasnet(width: float = 1.0, size: int = 224) -> Net:
    net = Net(3, size).conv(_w(32 * width), 3, 2).dw().conv(_w(16 * width))
    for k, t, c, n, s in (
        (3, 3, 24, 3, 2),
        (5, 3, 40, 3, 2),
        (5, 6, 80, 3, 2),
        (3, 6, 96, 2, 1),
        (5, 6, 192, 4, 2),
        (3, 6, 320, 1, 1),
    ):
        for i in range(n):
            _inverted(net, t, _w(c * width), k, s if i == 0 else 1)
    return net.conv(1280).globally().fc(1000)


def efficientnet(width: float, depth: float, size: int, lite: bool = False) -> Net:
    def reps(n: int) -> int:
        return -int(-(n * depth) // 1)

    net = Net(3, size).conv(32 if lite else _w(32 * width), 3, 2, act=not lite)
    blocks = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    for j, (t, c, n, s, k) in enumerate(blocks):
        times = n if lite and j in (0, len(blocks) - 1) else reps(n)
        for i in range(times):
            squeeze = 0 if lite else max(1, net.c // 4)
            _inverted(net, t, _w(c * width), k, s if i == 0 else 1, not lite, squeeze)
    return net.conv(1280 if lite else _w(1280 * width), act=not lite).globally().fc(1000)


def efficientnetv2_b0(size: int = 224) -> Net:
    net = Net(3, size).conv(32, 3, 2, act=True)
    net.conv(16, 3, act=True)
    for c, n, s in ((32, 2, 2), (48, 2, 2)):
        for i in range(n):
            before = net.c
            net.conv(before * 4, 3, s if i == 0 else 1, act=True).conv(c)
            if i:
                net.add()
    for t, c, n, s in ((4, 96, 3, 2), (6, 112, 5, 1), (6, 192, 8, 2)):
        for i in range(n):
            _inverted(net, t, c, 3, s if i == 0 else 1, True, max(1, net.c // 4))
    return net.conv(1280, act=True).globally().fc(1000)


def shufflenet(size: int = 224, groups: int = 3) -> Net:
    net = Net(3, size).conv(24, 3, 2).pool(3, 2)
    for out, n in ((240, 4), (480, 8), (960, 4)):
        for i in range(n):
            before, first = net.c, i == 0
            net.conv(out // 4, g=1 if before == 24 else groups)
            net.other("move", net.size, net.size).dw(3, 2 if first else 1)
            net.conv(out - before if first else out, g=groups)
            if first:
                side = 4 * before * net.h * net.w
                net.other("pool", side, side // 4)
                net.c = out
                net.other("move", net.size, net.size)
            else:
                net.add()
    return net.globally().fc(1000)


def shufflenet_v2(
    size: int = 224, channels: Sequence[int] = (116, 232, 464), last: int = 1024
) -> Net:
    net = shufflenet_v2_body(Net(3, size), channels)
    return net.conv(last).globally().fc(1000)


def shufflenet_v2_body(net: Net, channels: Sequence[int], k: int = 3) -> Net:
    net.conv(24, 3, 2).pool(3, 2)
    for out, n in zip(channels, (4, 8, 4), strict=True):
        half = out // 2
        net.cat(
            [lambda m, b=half: m.dw(k, 2).conv(b), lambda m, b=half: m.conv(b).dw(k, 2).conv(b)]
        )
        net.other("move", net.size, net.size)
        for _ in range(n - 1):
            net.other("move", net.size, net.size)
            net.c = half
            net.conv(half).dw(k).conv(half)
            net.c = out
            net.other("move", net.size, net.size)
            net.other("move", net.size, net.size)
    return net


def _basic(net: Net, out: int, s: int, project: bool = False) -> None:
    if s != 1 or net.c != out or project:
        net.side(lambda n: n.conv(out, 1, s))
    net.conv(out, 3, s).conv(out, 3).add()


def resnet18(size: int = 224, blocks: Sequence[int] = (2, 2, 2, 2), project: bool = False) -> Net:
    net = Net(3, size).conv(64, 7, 2).pool(3, 2)
    for out, n in zip((64, 128, 256, 512), blocks, strict=True):
        for i in range(n):
            _basic(net, out, 2 if i == 0 and out > 64 else 1, project and i == 0)
    return net.globally().fc(1000)


def resnet50(size: int = 224, blocks: Sequence[int] = (3, 4, 6, 3), on_3x3: bool = False) -> Net:
    net = Net(3, size).conv(64, 7, 2).pool(3, 2)
    for wide, n in zip((64, 128, 256, 512), blocks, strict=True):
        for i in range(n):
            s = 2 if i == 0 and wide > 64 else 1
            if i == 0:
                net.side(lambda m, w=wide, t=s: m.conv(4 * w, 1, t))
            first, second = (1, s) if on_3x3 else (s, 1)
            net.conv(wide, 1, first).conv(wide, 3, second).conv(4 * wide).add()
    return net.globally().fc(1000)


def vgg(convs: Sequence[int] = (2, 2, 3, 3, 3), size: int = 224) -> Net:
    net = Net(3, size)
    for out, n in zip((64, 128, 256, 512, 512), convs, strict=True):
        for _ in range(n):
            net.conv(out, 3)
        net.pool()
    return net.fc(4096).fc(4096).fc(1000)


def alexnet(size: int = 227) -> Net:
    net = Net(3, size).conv(96, 11, 4, pad="valid").act().pool(3, 2, pad="valid")
    net.conv(256, 5, g=2).act().pool(3, 2, pad="valid")
    net.conv(384, 3).conv(384, 3, g=2).conv(256, 3, g=2).pool(3, 2, pad="valid")
    return net.fc(4096).fc(4096).fc(1000)


def _inception(net: Net, a: int, b1: int, b3: int, c1: int, c5: int, d: int, k: int = 5) -> None:
    net.cat([
        lambda n: n.conv(a), lambda n: n.conv(b1).conv(b3, 3), lambda n: n.conv(c1).conv(c5, k),
        lambda n: n.pool(3, 1).conv(d),
    ])  # fmt: skip


def googlenet(size: int = 224, k: int = 5) -> Net:
    net = Net(3, size).conv(64, 7, 2).pool(3, 2).act().conv(64).conv(192, 3).act().pool(3, 2)
    rows = (
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    )  # fmt: skip
    for i, row in enumerate(rows):
        if i in (2, 7):
            net.pool(3, 2)
        _inception(net, *row, k=k)
    return net.globally().fc(1000)


def regnety_400m(size: int = 224) -> Net:
    net = Net(3, size).conv(32, 3, 2)
    for out, n in ((48, 1), (104, 3), (208, 6), (440, 6)):
        for i in range(n):
            s, before = (2, net.c) if i == 0 else (1, net.c)
            if i == 0:
                net.side(lambda m, o=out: m.conv(o, 1, 2))
            net.conv(out).conv(out, 3, s, g=out // 8).se(before // 4).conv(out).add()
    return net.globally().fc(1000)


def yolov4_tiny(size: int = 416) -> Net:
    net = Net(3, size).conv(32, 3, 2, act=False).conv(64, 3, 2)
    for wide in (64, 128, 256):
        net.conv(wide, 3)
        net.other("move", net.size // 2, net.size // 2)
        net.c = wide // 2
        net.conv(wide // 2, 3).conv(wide // 2, 3)
        net.c = wide
        net.other("move", net.size, net.size).conv(wide)
        net.c = 2 * wide
        net.other("move", net.size, net.size).pool()
    net.conv(512, 3).conv(256)
    net.side(lambda n: n.conv(512, 3).conv(255))
    net.conv(128)
    net.other("move", net.size, 4 * net.size)
    net.h, net.w, net.c = 2 * net.h, 2 * net.w, 384
    return net.other("move", net.size, net.size).conv(256, 3).conv(255)


def nanodet_m(size: int = 320) -> Net:
    net = shufflenet_v2_body(Net(3, size), (116, 232, 464))
    sizes = (size // 8, size // 16, size // 32)
    for c, s in zip((116, 232, 464), sizes, strict=True):
        net.c, net.h, net.w = c, s, s
        net.conv(96)
    for s in (*sizes[1:], *sizes[:2]):
        net.h = net.w = s
        net.other("move", net.size, net.size).add()
    for s in sizes:
        net.c, net.h, net.w = 96, s, s
        for _ in range(2):
            net.dw(5 if s else 3).conv(96)
        net.conv(112)
    return net


def yolo_fastestv2(size: int = 352) -> Net:
    net = shufflenet_v2_body(Net(3, size), (48, 96, 192))
    for c, s in ((192, size // 32), (288, size // 16)):
        net.c, net.h, net.w = c, s, s
        net.conv(72)
        for _ in range(2):
            net.side(lambda n: n.dw(5).conv(72).dw(5).conv(72))
        net.side(lambda n: n.conv(12))
        net.side(lambda n: n.conv(3))
        net.conv(80)
    return net


def yolo_fastest(size: int = 320) -> Net:
    net = Net(3, size).conv(8, 3, 2).conv(8).dw().conv(4)
    rows = (
        (8, 4, 1, 1), (24, 8, 2, 1), (32, 8, 1, 2), (32, 8, 2, 1), (48, 8, 1, 2), (48, 16, 1, 1),
        (96, 16, 1, 4), (96, 24, 2, 1), (136, 24, 1, 4), (136, 48, 2, 1), (224, 48, 1, 5),
    )  # fmt: skip
    for hidden, out, s, n in rows:
        for _ in range(n):
            c = net.c
            net.conv(hidden).dw(3, s).conv(out)
            if s == 1 and c == out:
                net.add()
    for _ in range(3):
        net.side(lambda n: n.pool(5, 1))
    net.conv(96)
    net.side(lambda n: n.dw(5).conv(128).dw(5).conv(128).conv(75))
    net.c, net.h, net.w = 136, net.h * 2, net.w * 2
    return net.conv(96).dw(5).conv(96).dw(5).conv(96).conv(75)


def blazeface(size: int = 128) -> Net:
    net = Net(3, size).conv(24, 5, 2)
    for out, s in (
        (24, 1),
        (28, 1),
        (32, 2),
        (36, 1),
        (42, 1),
        (48, 2),
        (56, 1),
        (64, 1),
        (72, 1),
        (80, 1),
        (88, 1),
        (96, 2),
        (96, 1),
        (96, 1),
        (96, 1),
        (96, 1),
    ):
        net.dw(3, s).conv(out).add()
        if net.h == 16 and out == 88:
            _heads(net, 2, 4)
    _heads(net, 6, 4)
    return net


def fastestdet(size: int = 352) -> Net:
    net = shufflenet_v2_body(Net(3, size), (48, 96, 192))
    net.c, net.h, net.w = 336, size // 16, size // 16
    net.conv(96)
    net.side(lambda n: n.dw(5).conv(96).dw(5).dw(5).dw(5))
    for _ in range(3):
        net.side(lambda n: n.dw(5).conv(96))
    return net.conv(85)


def transformer(
    layers: int, hidden: int, seq: int, inner: int, heads: int, embed: Net | None = None
) -> Net:
    """An encoder: products of attention, layer norms, GELU."""
    net = embed or Net(hidden, 1, seq)
    for _ in range(layers):
        n = seq * hidden
        net.other("norm", n, n)
        for _ in range(3):
            net.fc(hidden, rows=seq, inp=hidden)
        net.layers.append(Layer.product("scores", seq, hidden // heads, seq, heads))
        net.other("norm", heads * seq * seq, heads * seq * seq)
        net.layers.append(Layer.product("mixed", seq, seq, hidden // heads, heads))
        net.other("move", n, n).fc(hidden, rows=seq, inp=hidden)
        net.other("elementwise", 2 * n, n).other("norm", n, n)
        net.fc(inner, rows=seq, inp=hidden).other("elementwise", seq * inner, seq * inner)
        net.fc(hidden, rows=seq, inp=inner).other("elementwise", 2 * n, n)
    return net


def vision_transformer(size: int = 384, patch: int = 32) -> Net:
    n = (size // patch) ** 2 + 1
    net = Net(3, size).conv(768, patch, patch)
    return transformer(12, 768, n, 3072, 12, net).fc(1000, inp=768)


def inception_v3(size: int = 299) -> Net:
    net = Net(3, size).conv(32, 3, 2, pad="valid").conv(32, 3, pad="valid").conv(64, 3)
    net.pool(3, 2, pad="valid").conv(80).conv(192, 3, pad="valid").pool(3, 2, pad="valid")
    for d in (32, 64, 64):
        net.cat([
            lambda n: n.conv(64), lambda n: n.conv(48).conv(64, 5),
            lambda n: n.conv(64).conv(96, 3).conv(96, 3), lambda n, d=d: n.pool(3, 1).conv(d),
        ])  # fmt: skip
    net.cat([
        lambda n: n.conv(384, 3, 2, pad="valid"),
        lambda n: n.conv(64).conv(96, 3).conv(96, 3, 2, pad="valid"),
        lambda n: n.pool(3, 2, pad="valid"),
    ])  # fmt: skip
    for c in (128, 160, 160, 192):
        net.cat([
            lambda n: n.conv(192), lambda n, c=c: n.conv(c).conv(c, (1, 7)).conv(192, (7, 1)),
            lambda n, c=c: (
                n.conv(c).conv(c, (7, 1)).conv(c, (1, 7)).conv(c, (7, 1)).conv(192, (1, 7))
            ),
            lambda n: n.pool(3, 1).conv(192),
        ])  # fmt: skip
    net.cat([
        lambda n: n.conv(192).conv(320, 3, 2, pad="valid"),
        lambda n: n.conv(192).conv(192, (1, 7)).conv(192, (7, 1)).conv(192, 3, 2, pad="valid"),
        lambda n: n.pool(3, 2, pad="valid"),
    ])  # fmt: skip
    split = [lambda m: m.conv(384, (1, 3)), lambda m: m.conv(384, (3, 1))]
    for _ in range(2):
        net.cat([
            lambda n: n.conv(320),
            lambda n: n.conv(384).cat(split),
            lambda n: n.conv(448).conv(384, 3).cat(split),
            lambda n: n.pool(3, 1).conv(192),
        ])  # fmt: skip
    return net.globally().fc(1000)


def densenet121(size: int = 224) -> Net:
    net = Net(3, size).conv(64, 7, 2).pool(3, 2)
    for j, n in enumerate((6, 12, 24, 16)):
        for _ in range(n):
            c = net.c
            net.act().conv(128).conv(32, 3)
            net.c = c + 32
            net.other("move", net.size, net.size)
        if j < 3:
            net.act().conv(net.c // 2).pool()
    return net.globally().fc(1000)


NETWORKS: dict[str, Callable[[], Net]] = {
    "alexnet": alexnet,
    "blazeface": blazeface,
    "densenet": densenet121,
    "efficientnet_b0": lambda: efficientnet(1.0, 1.0, 224),
    "efficientnetv2_b0": efficientnetv2_b0,
    "FastestDet": fastestdet,
    "googlenet": googlenet,
    "inception_v1": googlenet,
    "inception_v3": inception_v3,
    "mnasnet": mnasnet,
    "mobilenet_ssd": mobilenet_ssd,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": lambda: mobilenet_v3(first=True),
    "mobilenet_v3_large": mobilenet_v3,
    "mobilenet_v3_small": lambda: mobilenet_v3(small=True),
    "mobilenet_v3_large_minimalistic": lambda: mobilenet_v3(minimal=True),
    "mobilenet_v3_small_minimalistic": lambda: mobilenet_v3(small=True, minimal=True),
    "mobilenet_v3_large_0.75_224": lambda: mobilenet_v3(width=0.75),
    "mobilenet_v3_small_0.75_224": lambda: mobilenet_v3(small=True, width=0.75),
    "mobilenet_yolo": mobilenet_yolo,
    "mobilenetv2_yolov3": mobilenetv2_yolov3,
    "nanodet_m": nanodet_m,
    "proxylessnasnet": proxylessnasnet,
    "regnety_400m": regnety_400m,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet_v2_50": lambda: resnet50(299, on_3x3=True),
    "resnet_v2_101": lambda: resnet50(299, (3, 4, 23, 3), True),
    "shufflenet": shufflenet,
    "shufflenet_v2": shufflenet_v2,
    "squeezenet": squeezenet,
    "squeezenet_v1.0": squeezenet_v10,
    "squeezenet_ssd": squeezenet_ssd,
    "vgg16": vgg,
    "vision_transformer": vision_transformer,
    "yolo-fastest-1.1": yolo_fastest,
    "yolo-fastestv2": yolo_fastestv2,
    "yolov4-tiny": yolov4_tiny,
    "ncnn:mobilenet_v2": lambda: mobilenet_v2(always=True),
    "ncnn:resnet18": lambda: resnet18(project=True),
    "bert-base-cased": lambda: transformer(12, 768, 124, 3072, 12),
}
for _width in (0.25, 0.5, 0.75, 1.0):
    for _size in (128, 160, 192, 224):
        NETWORKS[f"mobilenet_v1_{_width}_{_size}"] = lambda w=_width, s=_size: mobilenet_v1(w, s)
for _width in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
    for _size in (96, 128, 160, 192, 224):
        NETWORKS[f"mobilenet_v2_{_width}_{_size}"] = lambda w=_width, s=_size: mobilenet_v2(w, s)
        NETWORKS[f"mnasnet_{_width}_{_size}"] = lambda w=_width, s=_size: mnasnet(w, s)
for _n, (_w0, _d0, _s0) in enumerate(
    ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))
):
    NETWORKS[f"efficientnet_lite{_n}"] = lambda w=_w0, d=_d0, s=_s0: efficientnet(
        w, d, s, lite=True
    )
