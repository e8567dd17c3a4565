"""Answers to the exercises of `position/absolute`."""
# ruff: noqa: F821  the names are the chapter's


class sines_first:
    class right:
        def by_pairs(table):
            return table.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

        def by_index(table):
            d = table.shape[-1]
            return table[..., [*range(0, d, 2), *range(1, d, 2)]]

    class wrong:
        def cosines_first(table):
            return torch.cat([table[..., 1::2], table[..., 0::2]], dim=-1)

        def rows(table):
            return torch.cat([table[0::2], table[1::2]], dim=0)

        def the_other_way_back(table):
            return table.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

        def sines_alone(table):
            return table[..., 0::2]

        def as_it_is(table):
            return table


class place_of:
    class right:
        def by_angle(vectors):
            table = nn.functional.normalize(sinusoidal(1000, vectors.shape[1]))
            return (table @ nn.functional.normalize(vectors).T).argmax(dim=0)

        def by_distance(vectors):
            table = nn.functional.normalize(sinusoidal(1000, vectors.shape[1]))
            return torch.cdist(nn.functional.normalize(vectors), table).argmin(dim=1)

    class wrong:
        def by_length(vectors):
            table = sinusoidal(1000, vectors.shape[1])
            return torch.cdist(vectors, table, p=1).argmin(dim=1)

        def by_the_first_hand(vectors):
            return torch.atan2(vectors[:, 0], vectors[:, 1]).round().long()

        def one_short(vectors):
            return (vectors @ sinusoidal(999, vectors.shape[1]).T).argmax(dim=1)

        def the_wrong_axis(vectors):
            return (vectors @ sinusoidal(1000, vectors.shape[1]).T).argmax(dim=0)

        def least_alike(vectors):
            return (vectors @ sinusoidal(1000, vectors.shape[1]).T).argmin(dim=1)

        def exact(vectors):
            table = sinusoidal(1000, vectors.shape[1])
            return (vectors[:, None] == table).all(dim=-1).int().argmax(dim=1)


class stretch:
    class right:
        def by_weights(table, length):
            places = torch.linspace(0, len(table) - 1, length)
            low = places.long().clamp(max=len(table) - 2)
            return torch.lerp(table[low], table[low + 1], (places - low)[:, None])

        def by_a_matrix(table, length):
            places = torch.linspace(0, len(table) - 1, length)[:, None]
            return (1 - (places - torch.arange(len(table))).abs()).clamp(min=0) @ table

        def by_numpy(table, length):
            import numpy as np

            places, known = (
                np.linspace(0, len(table) - 1, length),
                np.arange(len(table)),
            )
            columns = [np.interp(places, known, column) for column in table.T.numpy()]
            return torch.from_numpy(np.stack(columns, axis=1))

    class wrong:
        def repeated(table, length):
            return table[torch.arange(length) * len(table) // length]

        def corners_not_aligned(table, length):
            options = {"mode": "linear", "align_corners": False}
            return nn.functional.interpolate(table.T[None], length, **options)[0].T

        def nearest(table, length):
            places = torch.linspace(0, len(table) - 1, length)
            return table[places.round().long()]

        def zeros_behind(table, length):
            return nn.functional.pad(table, (0, 0, 0, length - len(table)))

        def along_the_width(table, length):
            options = {"mode": "linear", "align_corners": True}
            return nn.functional.interpolate(table[None], length, **options)[0]
