"""Answers to the exercises of `position/rotary`."""
# ruff: noqa: F821  the names are the chapter's


class rotate_complex:
    class right:
        def by_exponential(heads, angles):
            arrows = torch.complex(heads[..., 0::2], heads[..., 1::2])
            turned = arrows * torch.exp(1j * angles)
            return torch.stack([turned.real, turned.imag], dim=-1).flatten(-2)

        def by_view(heads, angles):
            arrows = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2))
            turned = arrows * torch.polar(torch.ones_like(angles), angles)
            return torch.view_as_real(turned).reshape(heads.shape)

        def in_place(heads, angles):
            arrows = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
            arrows *= torch.polar(torch.ones_like(angles), angles)
            return heads

    class wrong:
        def the_other_pairing(heads, angles):
            return rotate(heads, angles)

        def clockwise(heads, angles):
            return rotate(heads, -angles, interleaved=True)

        def leaves_complex_numbers(heads, angles):
            arrows = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
            return arrows * torch.polar(torch.ones_like(angles), angles)

        def leaves_pairs(heads, angles):
            arrows = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
            turned = arrows * torch.polar(torch.ones_like(angles), angles)
            return torch.view_as_real(turned)

        def parts_side_by_side(heads, angles):
            arrows = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
            turned = arrows * torch.polar(torch.ones_like(angles), angles)
            return torch.cat([turned.real, turned.imag], dim=-1)

        def twice_as_far(heads, angles):
            return rotate(heads, 2 * angles, interleaved=True)

        def angle_as_length(heads, angles):
            arrows = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
            turned = arrows * torch.polar(angles, torch.ones_like(angles))
            return torch.view_as_real(turned).flatten(-2)


class base_for:
    class right:
        def by_logarithm(length, rotary_dim):
            turns = torch.tensor(length / (2 * torch.pi)).double().log()
            return turns.mul(rotary_dim / (rotary_dim - 2)).exp().item()

        def by_halving(length, rotary_dim):
            low, high = 1.0, 1e12
            for _ in range(200):
                middle = (low * high) ** 0.5
                slowest = middle ** -((rotary_dim - 2) / rotary_dim)
                fast = slowest * length > 2 * torch.pi
                low, high = (middle, high) if fast else (low, middle)
            return high

    class wrong:
        def half_a_turn(length, rotary_dim):
            return (length / torch.pi) ** (rotary_dim / (rotary_dim - 2))

        def radians_for_turns(length, rotary_dim):
            return length ** (rotary_dim / (rotary_dim - 2))

        def one_pair_too_many(length, rotary_dim):
            return length / (2 * torch.pi)

        def pairs_from_one(length, rotary_dim):
            return (length / (2 * torch.pi)) ** (rotary_dim / (rotary_dim + 2))

        def upside_down(length, rotary_dim):
            return (length / (2 * torch.pi)) ** ((rotary_dim - 2) / rotary_dim)

        def the_usual_one(length, rotary_dim):
            return 10_000.0

        def one_token_less(length, rotary_dim):
            return ((length - 1) / (2 * torch.pi)) ** (rotary_dim / (rotary_dim - 2))


class is_interleaved:
    class right:
        def by_the_last_partner(process, head_dim):
            head = torch.zeros(1, head_dim)
            head[0, 1] = 1
            turned, _ = process(head, head, torch.tensor([1]))
            return turned[0, 0].item() != 0

        def by_the_length_of_pairs(process, head_dim):
            torch.manual_seed(5)
            head = torch.randn(1, head_dim)
            turned, _ = process(head, head, torch.tensor([1]))
            before, after = head[0, :2].norm(), turned[0, :2].norm()
            return torch.allclose(before, after, rtol=1e-4)

        def with_positions_of_a_batch(process, head_dim):
            heads = torch.zeros(1, 1, 5, head_dim)
            heads[..., 0] = 1
            turned, _ = process(heads, heads, torch.arange(5)[None])
            return bool((turned[..., 1] != 0).any())

        def with_positions_of_two_texts(process, head_dim):
            heads = torch.zeros(2, 3, 5, head_dim)
            heads[..., 0] = 1
            turned, _ = process(heads, heads, torch.arange(10).view(2, 5))
            return bool((turned[..., 1] != 0).any())

    class wrong:
        def always(process, head_dim):
            return True

        def never(process, head_dim):
            return False

        def looks_at_position_0(process, head_dim):
            head = torch.zeros(1, head_dim)
            head[0, 0] = 1
            turned, _ = process(head, head, torch.tensor([0]))
            return bool(turned[0, 1] != 0)

        def takes_the_half_for_granted(process, head_dim):
            head = torch.zeros(1, head_dim)
            head[0, 0] = 1
            turned, _ = process(head, head, torch.tensor([1]))
            return bool(turned[0, head_dim // 2] == 0)

        def the_other_way_round(process, head_dim):
            head = torch.zeros(1, head_dim)
            head[0, 0] = 1
            turned, _ = process(head, head, torch.tensor([1]))
            return bool(turned[0, 1] == 0)

        def rounds(process, head_dim):
            head = torch.zeros(1, head_dim)
            head[0, 0] = 1
            turned, _ = process(head, head, torch.tensor([1]))
            return turned[0, 1].round(decimals=2).item() != 0

        def by_more_than_half(process, head_dim):
            head = torch.zeros(1, head_dim)
            head[0, 0] = 1
            turned, _ = process(head, head, torch.tensor([1]))
            return turned[0, 1].abs().item() > 0.5

        def reads_the_attribute(process, head_dim):
            return getattr(process, "interleaved", False)

        def asks_the_module(process, head_dim):
            return "interleaved" in repr(process)
