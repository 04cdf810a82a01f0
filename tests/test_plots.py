"""Pictures say what they were given: pixels, heights and places are read back."""

import io

import numpy as np
import pytest
from PIL import Image

from vi_jax import plots


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(0, 1, int(np.prod(shape))).reshape(shape)


def shown(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_named_rows_show_every_image_in_its_row():
    rows = {"x": ramp(3, 4, 5, 1), "β = 2": 1 - ramp(3, 4, 5, 1)}
    figure = plots.named_rows(rows)
    sheet = shown(figure)
    assert sheet.shape == (2 * 5 + 1, 3 * 6 + 1)
    for r, images in enumerate(rows.values()):
        for i, image in enumerate(images):
            place = sheet[5 * r + 1 : 5 * r + 5, 6 * i + 1 : 6 * i + 6]
            np.testing.assert_allclose(place, image[..., 0], atol=1e-7)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(rows)
    for wrong in ({}, {"a": ramp(3, 4, 5, 1), "b": ramp(2, 4, 5, 1)}):
        with pytest.raises(ValueError, match="one shape"):
            plots.named_rows(wrong)


def test_an_animation_plays_its_frames_there_and_back():
    frames = np.stack([np.full((2, 3, 3, 1), v) for v in (0.0, 0.4, 1.0)])
    data = plots.animation(frames, columns=2, seconds=0.2, zoom=2)
    with Image.open(io.BytesIO(data)) as gif:
        assert gif.n_frames == 4
        assert gif.info["duration"] == 200
        values = []
        for t in range(gif.n_frames):
            gif.seek(t)
            pixels = np.asarray(gif.convert("L"))
            assert pixels.shape == (2 * 5, 2 * 9)
            values.append(pixels[3, 3])
    assert values == [0, 102, 255, 102]
    with pytest.raises(ValueError, match="zoom"):
        plots.animation(frames, columns=2, zoom=0)
    with pytest.raises(ValueError, match="no frame"):
        plots.animation(frames[:0], columns=2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 3), (1, 1, 4, 1)])
def test_an_image_of_one_row_or_one_pixel_is_shown(shape):
    images = ramp(*shape) + 0.25 * (np.prod(shape) == 1)
    figure = plots.image_grid(images, columns=1, gap=0)
    figure.canvas.draw()
    expected = images[0, ..., 0] if shape[-1] == 1 else images[0]
    np.testing.assert_allclose(shown(figure), expected, atol=1e-7)


def test_a_latent_map_has_a_cloud_for_each_class():
    means, label = np.random.default_rng(0).normal(size=(9, 2)), np.arange(9) % 3
    axes = plots.latent_map(means, label).axes[0]
    for y, cloud in enumerate(axes.collections):
        np.testing.assert_allclose(cloud.get_offsets(), means[label == y])
        assert cloud.get_label() == str(y)
    for wrong in (means[:, :1], means[:4]):
        with pytest.raises(ValueError, match="label"):
            plots.latent_map(wrong, label)


def test_kl_bars_are_sorted_and_keep_the_numbers_of_the_latents():
    axes = plots.kl_bars(np.array([0.1, 3.0, 1.5])).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3.0, 1.5, 0.1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]


def test_the_elbo_line_touches_the_best_model_and_lies_below_the_others():
    rate, distortion = np.array([30.0, 20.0, 5.0]), np.array([80.0, 85.0, 130.0])
    curve = {"training": (rate + 1, distortion - 2)}
    axes = plots.rate_distortion(rate, distortion, [0.5, 1, 4], **curve).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    x, y = lines["ELBO = -105.0"].get_data()
    np.testing.assert_allclose(x + y, 105.0)
    np.testing.assert_allclose(lines["models"].get_ydata(), distortion[::-1])
    np.testing.assert_allclose(lines["training"].get_xdata(), rate[::-1] + 1)
    assert [text.get_text() for text in axes.texts] == ["0.5", "1", "4"]


def shows(axes, *values: float) -> bool:
    low, high = axes.get_ylim()  # upside down where low > high
    return all(low < value < high for value in values)


@pytest.mark.parametrize("away", [0.0, -100.0, -600.0])
def test_distortions_are_within_the_axis_whatever_their_sign(away):
    """A density may be above 1, and then a distortion is negative."""
    distortion = away + np.array([80.0, 85.0, 130.0])
    rate = np.array([30.0, 20.0, 5.0])
    axes = plots.rate_distortion(rate, distortion, [0.5, 1, 4]).axes[0]
    assert shows(axes, *distortion)
    steps = range(40)
    records = [{"step": t, "rate": t, "distortion": 130 - t + away} for t in steps]
    # The first twentieth is left out.
    records[0] |= {"distortion": 1e6, "rate": np.nan}
    axes = plots.training_curves(records).axes[1]
    assert shows(axes, 2, 39, 128 + away, 91 + away) and not shows(axes, 1e6)
