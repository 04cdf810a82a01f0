"""The step of `benchmark` as users of other libraries write it."""

import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark_step import (
    LATENTS,
    LEARNING_RATE,
    PIXELS,
    SEED,
    Setup,
    draw,
    mlp,
    scanned,
    turns,
)


def with_numpyro(setup: Setup) -> Iterator[float]:
    import numpyro
    from numpyro import distributions as dist, infer

    b, (encoder, decoder) = setup.batch_size, setup.layers

    def model(x):
        with numpyro.plate("batch", b):
            prior = dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1)
            logits = mlp(numpyro.param("p", decoder), numpyro.sample("z", prior))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        loc, h = jnp.split(mlp(numpyro.param("q", encoder), x), 2, axis=-1)
        scale = jnp.exp(0.5 * h)
        with numpyro.plate("batch", b):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def step(state, key, image):
        state, loss = svi.update(state, draw(key, image))
        # NumPyro minimises the sum over the batch; Adam's steps do not see the factor.
        return state, loss / b

    objective = infer.Trace_ELBO() if setup.k == 1 else infer.RenyiELBO(0, setup.k)
    svi = infer.SVI(model, guide, optax.adam(LEARNING_RATE), objective)
    return scanned(setup, step, svi.init(jax.random.key(SEED), jnp.zeros((b, PIXELS))))


def with_pytorch(setup: Setup, *, compiled: bool = False) -> Iterator[float]:
    import torch

    device = torch_device()
    # As in nn.Linear.
    leaf = lambda a: torch.from_numpy(a.T.copy()).to(device).requires_grad_()
    layers = jax.tree.map(leaf, setup.layers)
    # With CUDA graphs, without which a GPU waits for the host.
    how = {"mode": "reduce-overhead"} if device == "cuda" else {}
    of_batch = torch.compile(pytorch_loss, **how) if compiled else pytorch_loss
    loss = lambda image: of_batch(layers, image, setup.k)
    return torch_turns(setup, loss, jax.tree.leaves(layers))


def torch_device() -> str:
    """PyTorch set to the kind of device that JAX has, with products as exact."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_default_device(device)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(SEED)
    return device


def torch_turns(setup: Setup, loss: Callable, parameters) -> Iterator[float]:
    """The mean loss of each turn of Adam on `loss(image) -> tensor`."""
    import torch

    device = parameters[0].device
    images = torch.from_numpy(setup.stream.resident["image"]).to(device)
    adam = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    for _, index in turns(setup):
        losses = []
        for rows in torch.from_numpy(index).to(device):
            adam.zero_grad()
            value = loss(images[rows])
            value.backward()
            adam.step()
            losses.append(value.detach().clone())  # CUDA graphs write to one place
        yield float(torch.stack(losses).mean())


def pytorch_loss(layers, image, k: int):
    import torch
    from torch.nn import functional as F

    def mlp(layers, h):
        for layer in layers[:-1]:
            h = torch.tanh(F.linear(h, *layer))
        return F.linear(h, *layers[-1])

    x = (255 * torch.rand(image.shape, device=image.device) < image).float()
    loc, h = mlp(layers[0], x).chunk(2, -1)
    log_scale = 0.5 * h
    eps = torch.randn(k, *loc.shape, device=image.device)
    z = loc + torch.exp(log_scale) * eps
    logits, x = mlp(layers[1], z), x.expand(k, -1, -1)
    log_lik = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    log_w = log_lik + (0.5 * (eps**2 - z**2) + log_scale).sum(-1)
    return -(torch.logsumexp(log_w, 0) - np.log(k)).mean()


def with_pythae(setup: Setup) -> Iterator[float]:
    import torch
    from pythae import models as pythae
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    device = torch_device()

    def dense(layers, last):
        parts = []
        for kernel, bias in layers:
            linear = torch.nn.Linear(*kernel.shape)
            linear.weight.data = torch.from_numpy(kernel.T.copy()).to(device)
            linear.bias.data = torch.from_numpy(bias.copy()).to(device)
            parts += [linear, torch.nn.Tanh()]
        return torch.nn.Sequential(*parts[:-1], *last)

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = dense(setup.layers[0], [])

        def forward(self, x):
            loc, log_var = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = dense(setup.layers[1], [torch.nn.Sigmoid()])

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z))

    how = {
        "input_dim": (PIXELS,),
        "latent_dim": LATENTS,
        "reconstruction_loss": "bce",
    }
    if setup.k == 1:
        kind, config = pythae.VAE, pythae.VAEConfig(**how)
    else:
        config = pythae.IWAEConfig(number_samples=setup.k, **how)
        kind = pythae.IWAE
    model = kind(config, encoder=Encoder(), decoder=Decoder())

    def loss(image):
        x = (255 * torch.rand(image.shape) < image).float()
        return model({"data": x}).loss

    return torch_turns(setup, loss, list(model.parameters()))


def with_flax(setup: Setup) -> Iterator[float]:
    """The example's step: `apply_gradients` of a `TrainState`, and no jit."""
    from flax import linen
    from flax.training.train_state import TrainState

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, key):
            h = x
            for width in (200, 200):
                h = jnp.tanh(linen.Dense(width)(h))
            loc, log_var = jnp.split(linen.Dense(2 * LATENTS)(h), 2, -1)
            z = loc + jnp.exp(0.5 * log_var) * jax.random.normal(key, loc.shape)
            for width in (200, 200):
                z = jnp.tanh(linen.Dense(width)(z))
            return linen.Dense(PIXELS)(z), loc, log_var

    net, names = Net(), [f"Dense_{i}" for i in range(6)]
    both = [*setup.layers[0], *setup.layers[1]]
    params = {
        name: {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}
        for name, (kernel, bias) in zip(names, both, strict=True)
    }
    adam = optax.adam(LEARNING_RATE)
    state = TrainState.create(apply_fn=net.apply, params=params, tx=adam)
    images = jnp.array(setup.stream.resident["image"])

    def loss(params, key, image):
        key_x, key_z = jax.random.split(key)
        x = draw(key_x, image)
        logits, loc, log_var = state.apply_fn({"params": params}, x, key_z)
        log_lik = jnp.sum(x * logits - jax.nn.softplus(logits), -1)
        rate = 0.5 * jnp.sum(jnp.exp(log_var) + loc**2 - 1 - log_var, -1)
        return jnp.mean(rate - log_lik)

    for first, index in turns(setup):
        losses = []
        for i, rows in enumerate(index):
            key = jax.random.fold_in(jax.random.key(SEED), first + i)
            value, grads = jax.value_and_grad(loss)(state.params, key, images[rows])
            state = state.apply_gradients(grads=grads)
            losses.append(value)
        yield float(jnp.mean(jnp.stack(losses)))
