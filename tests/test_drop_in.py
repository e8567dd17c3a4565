"""A small GPT in the companion's style runs and learns around our attention."""

import torch
from torch import nn
from torch.nn import functional as F

from attention import MultiHeadAttention, convert_state_dict, future_leak

CONFIG = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and beside a shortcut."""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        width = cfg["emb_dim"]
        self.ff = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class SmallGPT(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.trf_blocks = nn.Sequential(*[Block(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = nn.LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def embed(self, tokens):
        return self.tok_emb(tokens) + self.pos_emb(torch.arange(tokens.shape[1]))

    def forward(self, tokens):
        return self.out_head(self.final_norm(self.trf_blocks(self.embed(tokens))))


def some_tokens():
    return torch.randint(61, (4, 17))


def loss_of(model, tokens):
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_it_learns_a_batch_by_heart():
    model, tokens = SmallGPT(CONFIG), some_tokens()
    before = loss_of(model.eval(), tokens).item()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, tokens).backward()
        optimizer.step()
    assert loss_of(model.eval(), tokens).item() < before / 2


def test_no_block_leaks_the_future():
    model = SmallGPT(CONFIG).eval()
    assert future_leak(model.trf_blocks, model.embed(some_tokens()[:, :16])) == 0


def test_a_checkpoint_in_the_companions_form_loads_into_it():
    donor, model = SmallGPT(CONFIG).eval(), SmallGPT(CONFIG).eval()
    checkpoint = donor.state_dict()
    for layer in range(CONFIG["n_layers"]):
        forbidden = torch.triu(torch.ones(16, 16), diagonal=1)
        checkpoint[f"trf_blocks.{layer}.att.mask"] = forbidden
    model.load_state_dict(checkpoint, strict=True)
    tokens = some_tokens()[:, :16]
    torch.testing.assert_close(model(tokens), donor(tokens))


class CompanionAttention(nn.Module):
    """The companion's class by description: our tensors, the future stored as ones."""

    def __init__(self, d, context_length, num_heads):
        super().__init__()
        self.num_heads = num_heads
        for name in ("W_query", "W_key", "W_value"):
            self.add_module(name, nn.Linear(d, d, bias=False))
        self.out_proj = nn.Linear(d, d)
        forbidden = torch.triu(torch.ones(context_length, context_length), diagonal=1)
        self.register_buffer("mask", forbidden)

    def forward(self, x):
        three = self.W_query(x), self.W_key(x), self.W_value(x)
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for part in three
        )
        scores, length = queries @ keys.mT / queries.shape[-1] ** 0.5, x.shape[-2]
        scores = scores.masked_fill(self.mask[:length, :length].bool(), -torch.inf)
        context = scores.softmax(dim=-1) @ values
        return self.out_proj(context.transpose(-3, -2).flatten(-2))


def test_a_model_trained_around_ours_runs_around_the_companions_attention():
    """The way back: each layer converted, the whole model loaded strictly."""
    model, theirs = SmallGPT(CONFIG).eval(), SmallGPT(CONFIG).eval()
    checkpoint = model.state_dict()
    for layer, block in enumerate(theirs.trf_blocks):
        block.att = CompanionAttention(32, 16, 4)
        prefix = f"trf_blocks.{layer}.att."
        ours = model.trf_blocks[layer].att.state_dict()
        state = convert_state_dict(ours, "ours", "companion", context_length=16)
        checkpoint |= {f"{prefix}{name}": tensor for name, tensor in state.items()}
    theirs.load_state_dict(checkpoint, strict=True)
    tokens = some_tokens()[:, :13]
    torch.testing.assert_close(theirs(tokens), model(tokens))
