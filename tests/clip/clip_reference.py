"""CLIP written a second time, from its description, on a plain dictionary of weights. Imports nothing of the project.

The plain forwards contain no prompt code. The prompted ones insert vectors row by row, by concatenation.
"""

import math

import torch
import torch.nn.functional as F

VOCAB = 1000
LAYERS = 4
HEADS = 2
WIDTH = 64
"""Numbers of the tiny CLIP of the tests."""


def randomised(model, seed=0):
    """Every weight drawn anew, so that no bias or norm is trivial."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("logit_scale"):
                continue
            noise = torch.randn(parameter.shape, generator=rng)
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=rng))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=rng))
    return model


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def block(x, w, name, heads, act, causal):
    """x: (L, d) or (rows, L, d)."""
    length, width = x.shape[-2:]
    h = norm(x, w, f"{name}.ln_1")
    qkv = F.linear(h, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, width // heads)).transpose(-3, -2) for part in qkv.split(width, dim=-1))
    mask = torch.full((length, length), -math.inf).triu(1) if causal else None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2).flatten(-2)
    x = x + F.linear(out, w[f"{name}.attn.out_proj.weight"], w[f"{name}.attn.out_proj.bias"])
    h = act(F.linear(norm(x, w, f"{name}.ln_2"), w[f"{name}.mlp.c_fc.weight"], w[f"{name}.mlp.c_fc.bias"]))
    return x + F.linear(h, w[f"{name}.mlp.c_proj.weight"], w[f"{name}.mlp.c_proj.bias"])


def patches(w, image):
    """Class token, patches, positions: (B, 1 + P, d)."""
    kernel = w["visual.conv1.weight"]
    x = F.conv2d(image, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    first = w["visual.class_embedding"].repeat(x.shape[0], 1, 1)
    return torch.cat([first, x], 1) + w["visual.positional_embedding"]


def plain_image(w, image, layers, heads, act=quick_gelu):
    x = norm(patches(w, image), w, "visual.ln_pre")
    for i in range(layers):
        x = block(x, w, f"visual.transformer.resblocks.{i}", heads, act, causal=False)
    return norm(x[:, 0], w, "visual.ln_post") @ w["visual.proj"]


def plain_text(w, ids, layers, heads, act=quick_gelu):
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: ids.shape[1]]
    for i in range(layers):
        x = block(x, w, f"transformer.resblocks.{i}", heads, act, causal=True)
    x = norm(x, w, "ln_final")
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ w["text_projection"]


def prompted_image(w, image, layers, heads, prompts, act=quick_gelu):
    """prompts: per layer a list with one (n, d) tensor per image. Returns pooled and tokens, image after image."""
    pooled, tokens = [], []
    for row, x in enumerate(patches(w, image)):
        count = len(prompts[0][row])
        x = norm(torch.cat([x, prompts[0][row]]), w, "visual.ln_pre")
        for i in range(layers):
            if 0 < i < len(prompts):
                x = torch.cat([x[: len(x) - count], prompts[i][row]])
            x = block(x, w, f"visual.transformer.resblocks.{i}", heads, act, causal=False)
        x = norm(x, w, "visual.ln_post") @ w["visual.proj"]
        pooled.append(x[0])
        tokens.append(x)
    return torch.stack(pooled), torch.stack(tokens)


def replaced(x, slots, values):
    """x: (L, d) with values[j] in place of row slots[j]."""
    rows = list(x)
    for slot, value in zip(slots, values, strict=True):
        rows[slot] = value
    return torch.stack(rows)


def prompted_text(w, ids, layers, heads, prompts, slots, labels=None, label_slots=None, act=quick_gelu):
    """prompts: per layer a list with one (n, d) tensor per sentence; slots: per sentence a list of n positions.

    Runs every position of ids. Returns pooled and tokens.
    """
    pooled, tokens = [], []
    for row, sentence in enumerate(ids):
        x = w["token_embedding.weight"][sentence]
        if prompts:
            x = replaced(x, slots[row], prompts[0][row])
        if labels is not None:
            x = replaced(x, label_slots[row], labels[row])
        x = x + w["positional_embedding"][: len(sentence)]
        for i in range(layers):
            if 0 < i < len(prompts):
                x = replaced(x, slots[row], prompts[i][row])
            x = block(x, w, f"transformer.resblocks.{i}", heads, act, causal=True)
        x = norm(x, w, "ln_final") @ w["text_projection"]
        pooled.append(x[int(sentence.argmax())])
        tokens.append(x)
    return torch.stack(pooled), torch.stack(tokens)
