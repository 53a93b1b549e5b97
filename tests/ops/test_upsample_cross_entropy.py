"""The loss: the pixels that count, by a literal version of SPEC A.3, class weights, wrong values, gradients of ties."""

import math

import pytest
import torch
import torch.nn.functional as F

from hyperseg.ops import BACKENDS, check_labels, upsample_cross_entropy, use_backend
from tests.ops import oracle
from tests.ops.cases import DTYPES, TILE_LAYOUTS
from tests.ops.targets import Target, able, on_every_target, skip_if_not_supported
from tests.tolerances import FORWARD, GRADIENT, assert_close

F64 = torch.float64


def literal(logits, labels, k, threshold, ignore_index=255, weight=None):
    """Return the bootstrapped cross-entropy, computed with lists and loops (SPEC A.3)."""
    scores = oracle.resize(logits.double(), *labels.shape[1:])
    images = []
    for n in range(labels.shape[0]):
        losses = []
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = int(labels[n, y, x])
                if label == ignore_index:
                    losses.append(0.0)
                    continue
                pixel = scores[n, :, y, x].tolist()
                top = max(pixel)
                loss = math.log(sum(math.exp(s - top) for s in pixel)) + top - pixel[label]
                losses.append(loss if weight is None else float(weight[label]) * loss)
        losses.sort(reverse=True)
        worst = [v for v in losses if v > threshold] if losses[k] > threshold else losses[:k]
        images.append(sum(worst) / len(worst))
    return sum(images) / len(images)


def batch(seed=0, n=2, classes=4, size=(4, 5), to=(8, 10), ignored=0.2):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, *size, generator=g, dtype=F64)
    labels = torch.randint(classes, (n, *to), generator=g)
    labels[torch.rand(n, *to, generator=g) < ignored] = 255
    return logits, labels


@pytest.mark.parametrize("k", [1, 7, 40, 79], ids="k={}".format)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0, 50.0], ids="threshold={}".format)
@pytest.mark.parametrize("ignored", [0.0, 0.2, 0.95], ids="ignored={}".format)
def test_bootstrapped_loss_matches_the_specification(k, threshold, ignored):
    logits, labels = batch(ignored=ignored)
    loss = upsample_cross_entropy(logits, labels, bootstrap=k, threshold=threshold)
    assert loss.item() == pytest.approx(literal(logits, labels, k, threshold), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("k", [1, 40, 79], ids="k={}".format)
@pytest.mark.parametrize("threshold", [0.3, 2.0], ids="threshold={}".format)
def test_losses_are_ranked_after_they_were_multiplied_by_class_weights(k, threshold):
    logits, labels = batch()
    weight = torch.tensor([0.1, 0.0, 3.0, 1.0], dtype=F64)
    loss = upsample_cross_entropy(logits, labels, weight=weight, bootstrap=k, threshold=threshold)
    assert loss.item() == pytest.approx(literal(logits, labels, k, threshold, weight=weight), rel=1e-12)


def test_k_is_compared_with_the_pixel_after_the_first_k():
    """With exactly k losses above the threshold the k worst count; with more, all losses above it count."""
    labels = torch.zeros(1, 1, 6, dtype=torch.int64)
    wrong = torch.tensor([5.0, 4.0, 3.0, 2.0, -9.0, -9.0], dtype=F64)  # loss = log(1 + exp(wrong))
    logits = torch.stack([torch.zeros_like(wrong), wrong])[None, :, None]
    losses = torch.log1p(wrong.exp())
    for k, counted in ((4, 4), (3, 4), (2, 4), (5, 5)):
        loss = upsample_cross_entropy(logits, labels, bootstrap=k, threshold=1.0)
        assert loss.item() == pytest.approx(losses[:counted].mean().item(), rel=1e-12)


def test_a_loss_at_the_threshold_is_not_above_it():
    logits, labels = torch.zeros(1, 2, 2, 4, dtype=F64), torch.zeros(1, 2, 4, dtype=torch.int64)
    logits[0, 1, 0, :3] = 1.0
    threshold = F.cross_entropy(logits, labels, reduction="none")[0, 1, 1].item()  # log 2, as it is computed
    loss = upsample_cross_entropy(logits, labels, bootstrap=2, threshold=threshold)
    assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-12)


def test_the_published_setting():
    """k = 4096 and threshold 0.3, on more than k pixels; and on fewer, where the official code fails."""
    logits, labels = batch(n=1, size=(40, 60), to=(80, 120))
    loss = upsample_cross_entropy(logits, labels, bootstrap=4096)
    per_pixel = oracle.pixel_losses(logits, labels, 255).flatten().sort(descending=True).values
    assert per_pixel[4096] > 0.3
    assert loss.item() == pytest.approx(per_pixel[per_pixel > 0.3].mean().item(), rel=1e-12)
    few = upsample_cross_entropy(logits, labels[:, :40, :60], bootstrap=4096)
    everything = oracle.pixel_losses(logits, labels[:, :40, :60], 255)
    assert few.item() == pytest.approx(everything.mean().item(), rel=1e-12)


def test_plain_loss_is_the_mean_over_valid_pixels():
    logits, labels = batch()
    expected = F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=255)
    assert upsample_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)


@on_every_target("upsample_cross_entropy")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ignore_index", [255, -100])
def test_class_weights_are_those_of_pytorch(target: Target, dtype: torch.dtype, ignore_index: int):
    """The mean divides by the sum of the weights of the valid pixels' classes; so do the gradients."""
    logits, labels = batch()
    logits, labels = logits.to(dtype), labels.where(labels != 255, ignore_index)
    weight = torch.tensor([0.3, 0.0, 2.0, 1.5], dtype=torch.promote_types(dtype, torch.float32))
    full = logits.double().requires_grad_()
    expected = F.cross_entropy(
        F.interpolate(full, labels.shape[1:], mode="bilinear"), labels, weight.double(), ignore_index=ignore_index
    )
    expected.backward()
    args = [t.to(target.device) for t in (logits, labels, weight)]
    skip_if_not_supported(target, "upsample_cross_entropy", (*args, ignore_index, 0, 0.3))
    leaf = args[0].requires_grad_()
    with use_backend(target.backend):
        loss = upsample_cross_entropy(leaf, args[1], weight=args[2], ignore_index=ignore_index)
        loss.backward()
    assert_close("loss", loss, expected, FORWARD[torch.promote_types(dtype, torch.float32)])
    assert_close("gradient", leaf.grad, full.grad, GRADIENT[dtype])


@pytest.mark.parametrize("bootstrap", [0, 10])
def test_a_batch_of_classes_without_weight_gives_zero(bootstrap):
    """Neither the loss nor its gradient is 0 / 0."""
    logits, labels = batch()
    loss = upsample_cross_entropy(
        logits.requires_grad_(), labels.clamp(max=1), weight=torch.tensor([0, 0, 1.0, 2.0], dtype=F64), ignore_index=1,
        bootstrap=bootstrap,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_the_class_weight_of_a_pixel_scales_its_share_of_the_bootstrapped_gradient():
    """With all pixels counted, the gradient is linear in the class weights, and each class contributes on its own."""
    logits, labels = batch()

    def gradient(*weight):
        leaf = logits.clone().requires_grad_()
        loss = upsample_cross_entropy(leaf, labels, weight=torch.tensor(weight, dtype=F64), bootstrap=80, threshold=99)
        return torch.autograd.grad(loss, leaf)[0]

    alone = [gradient(*(float(i == c) for i in range(4))) for c in range(4)]
    summed = 0.5 * alone[0] + 2 * alone[1] + 0 * alone[2] + 3 * alone[3]
    assert torch.allclose(gradient(0.5, 2.0, 0.0, 3.0), summed, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bootstrap", [0, 25])
@pytest.mark.parametrize("weight", [None, [0.5, 0.0, 2.0, 1.0]], ids=["equal", "weights"])
def test_uint8_labels_are_those_numbers(bootstrap, weight):
    logits, labels = batch()
    weight = None if weight is None else torch.tensor(weight, dtype=F64)
    found = []
    for given in (labels, labels.to(torch.uint8)):
        leaf = logits.clone().requires_grad_()
        loss = upsample_cross_entropy(leaf, given, weight=weight, bootstrap=bootstrap)
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# What is wrong, as a change of (labels, class weights), at the first pixel of the second image.
WRONG = {
    "the first number that is no class": lambda labels, weight: labels[1, 0, 0].fill_(4),
    "minus 1": lambda labels, weight: labels[1, 0, 0].fill_(-1),
    "far out": lambda labels, weight: labels[1, 0, 0].fill_(-(2**40)),
    "above 32 bits": lambda labels, weight: labels[1, 0, 0].fill_(2**32 + 1),
    "a NaN weight": lambda labels, weight: weight[labels[1, 0, 0].fill_(2)].fill_(torch.nan),
    "a negative weight": lambda labels, weight: weight[labels[1, 0, 0].fill_(2)].fill_(-1.0),
    "an infinite weight": lambda labels, weight: weight[labels[1, 0, 0].fill_(2)].fill_(torch.inf),
}


@on_every_target("upsample_cross_entropy")
@pytest.mark.parametrize("bootstrap", [0, 10], ids="bootstrap={}".format)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_make_loss_and_gradients_nan(target: Target, wrong: str, bootstrap: int):
    """So it is in each backend itself, where a host synchronisation would be needed to raise an error."""
    logits, labels = batch()
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0])
    WRONG[wrong](labels, weight)
    args = [t.to(target.device) for t in (logits.float(), labels, weight)]
    functions = BACKENDS[target.backend].supported
    forward, backward = functions["upsample_cross_entropy"], functions["upsample_cross_entropy_backward"]
    loss, weights = forward(*args, 255, bootstrap, 99.0)
    assert loss.isnan()
    assert weights[1, 0, 0].isnan()
    gradient = backward(torch.ones_like(loss), *args[:2], weights)
    assert gradient[1, :, 0, 0].isnan().all()


@on_every_target("upsample_cross_entropy")
def test_a_wrong_label_in_the_backward_pass_alone(target: Target):
    """Weights from elsewhere may be numbers; the label is not read as a class."""
    logits, labels = batch(ignored=0)
    labels[1, 0, 0] = 2**33
    backward = BACKENDS[target.backend].supported["upsample_cross_entropy_backward"]
    args = [t.to(target.device) for t in (torch.tensor(1.0), logits.float(), labels, torch.ones(labels.shape))]
    gradient = backward(*args)
    assert gradient[1, :, 0, 0].isnan().all()
    assert gradient[0].isfinite().all()
    assert gradient[1, :, 2:].isfinite().all()


@pytest.mark.parametrize("bootstrap", [0, 10])
def test_labels_are_checked_in_a_compiled_function_too(bootstrap):
    logits, labels = batch()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(logits, labels, weight):
        return upsample_cross_entropy(logits, labels, weight=weight, bootstrap=bootstrap)

    weight = torch.ones(4, dtype=F64)
    assert compiled(logits, labels, weight).item() == upsample_cross_entropy(logits, labels, bootstrap=bootstrap).item()
    labels[0, 1, 1] = 77
    with pytest.raises(ValueError, match=r"1 labels are outside 0..3 and not 255 \(ignored\), such as \[77\]"):
        compiled(logits, labels, weight)


def test_nan_logits_are_not_taken_for_wrong_labels():
    logits, labels = batch()
    logits[0, 0, 0, 0] = torch.nan
    for bootstrap in (0, 10):
        leaf = logits.clone().requires_grad_()
        loss = upsample_cross_entropy(leaf, labels.clamp(max=3), bootstrap=bootstrap)
        loss.backward()
        assert loss.isnan()
        assert leaf.grad[0, :, 0, 0].isnan().all()
        assert leaf.grad[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_labels_of_a_data_set(dtype):
    """Any integers, of any shape: 200 is no class where 156 or -56 would be its 8 bits."""
    labels = torch.tensor([0, 1, 2, 100], dtype=dtype)
    check_labels(labels, 3, ignore_index=100)
    check_labels(labels[:0], 3)
    with pytest.raises(ValueError, match=r"check_labels: 1 labels are outside 0..2 and not 255 .* \[100\]"):
        check_labels(labels, 3)
    with pytest.raises(ValueError, match=r"such as \[100\]"):
        check_labels(labels.view(2, 2), 3, ignore_index=100 - 256)
    check_labels(labels, 500)


@pytest.mark.parametrize("bootstrap", [0, 10, 1000])
def test_all_pixels_ignored(bootstrap):
    logits, labels = batch(ignored=2.0)
    loss = upsample_cross_entropy(logits.requires_grad_(), labels, bootstrap=bootstrap)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 255])
def test_any_label_can_be_the_ignored_one(ignore_index):
    logits, labels = batch()
    moved = labels.where(labels != 3, 2).where(labels != 255, ignore_index)
    loss = upsample_cross_entropy(logits, moved, ignore_index=ignore_index)
    assert loss.item() == pytest.approx(upsample_cross_entropy(logits, labels.where(labels != 3, 2)).item(), rel=1e-12)


def test_images_have_equal_weights_for_any_number_of_counted_pixels():
    logits, labels = batch(n=3)
    alone = [upsample_cross_entropy(logits[i : i + 1], labels[i : i + 1], bootstrap=9).item() for i in range(3)]
    assert upsample_cross_entropy(logits, labels, bootstrap=9).item() == pytest.approx(sum(alone) / 3, rel=1e-12)
    assert len(set(alone)) == 3


def test_ties_at_the_cut_share_the_remaining_weight():
    """The worst pixel has weight 1/2. Three tied pixels share the other 1/2, so their gradients are equal."""
    logits = torch.zeros(1, 2, 1, 5, dtype=F64)
    logits[0, 1, 0] = torch.tensor([4.0, 1.0, 1.0, 1.0, -4.0])
    labels = torch.zeros(1, 1, 5, dtype=torch.int64)
    loss = upsample_cross_entropy(logits.requires_grad_(), labels, bootstrap=2, threshold=99.0)
    worst, tied = math.log1p(math.exp(4)), math.log1p(math.exp(1))
    assert loss.item() == pytest.approx((worst + tied) / 2, rel=1e-12)
    loss.backward()
    weights = torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6, 0], dtype=F64)
    expected = weights * logits.detach()[0, 1, 0].sigmoid()
    assert torch.allclose(logits.grad[0, 1, 0], expected, rtol=1e-12, atol=0)
    assert torch.allclose(logits.grad[0, 0, 0], -expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bootstrap", [0, 10, 70])
@pytest.mark.parametrize("weight", [None, [0.3, 1.0, 2.0, 1.5]], ids=["equal", "weights"])
def test_weights_are_the_derivatives_of_the_loss_by_the_pixel_losses(bootstrap, weight):
    """Ignored pixels have weight 0, also if their zeros are among the worst. The weighted losses sum to the loss."""
    logits, labels = batch(ignored=0.5)
    weight = None if weight is None else torch.tensor(weight, dtype=F64)
    loss, weights = torch.ops.hyperseg.upsample_cross_entropy.default(logits, labels, weight, 255, bootstrap, 99.0)
    assert weights.shape == labels.shape
    assert (weights[labels == 255] == 0).all()
    assert 0 < int((weights > 0).sum()) <= (int((labels != 255).sum()) if not bootstrap else 2 * bootstrap)
    total = (oracle.pixel_losses(logits, labels, 255) * weights).sum().item()
    assert loss.item() == pytest.approx(total, rel=1e-12)


def test_ignored_pixels_count_as_zeros_in_the_bootstrapped_loss():
    logits, labels = batch(n=1, ignored=0.9)
    valid = int((labels != 255).sum())
    assert 0 < valid < 20
    total = oracle.pixel_losses(logits, labels, 255).sum().item()
    assert upsample_cross_entropy(logits, labels, bootstrap=20, threshold=99.0).item() == pytest.approx(total / 20)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([3e4, -3e4], dtype=torch.float16).view(1, 2, 1, 1)
    loss = upsample_cross_entropy(logits, torch.ones(1, 1, 1, dtype=torch.int64))
    assert (loss.dtype, loss.item()) == (torch.float32, pytest.approx(6e4, rel=1e-3))


@pytest.mark.parametrize("bootstrap", [0, 30])
def test_dtypes_of_gradients(bootstrap):
    """Gradients have the dtype of the logits."""
    logits, labels = batch()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        leaf = logits.to(dtype).requires_grad_()
        upsample_cross_entropy(leaf, labels, bootstrap=bootstrap).backward()
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 7, 12, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("target", [p for p in able("upsample_cross_entropy") if p.values[0].backend == "cuda"])
def test_results_are_bitwise_equal_for_every_layout_of_logits(target, dtype, channels):
    for small, size in (((9, 24), (18, 48)), ((3, 8), (5, 9)), ((4, 16), (4, 16))):
        logits, labels = batch(n=2, classes=channels, size=small, to=size)
        logits, labels = logits.to(dtype), labels.to(target.device)
        plain = []
        for layout in TILE_LAYOUTS.values():
            x = layout(logits).to(target.device)
            loss, weights = target.run("upsample_cross_entropy", (x, labels, None, 255, 0, 0.0))
            gradient = target.run("upsample_cross_entropy_backward", (torch.ones_like(loss), x, labels, weights))
            found = [loss, weights, gradient.contiguous()]
            plain = plain or found
            assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
