"""Answers to the exercises of `reading/heads`."""
# ruff: noqa: F821  the names are the chapter's


class same_before:
    class right:
        def by_a_loop(ids):
            found = torch.zeros(len(ids), len(ids), dtype=torch.bool)
            for i in range(len(ids)):
                for j in range(i):
                    found[i, j] = ids[i] == ids[j]
            return found

        def by_one_hot(ids):
            tokens, places = F.one_hot(ids), torch.arange(len(ids))
            return (tokens @ tokens.T > 0) & (places < places[:, None])

    class wrong:
        def itself_included(ids):
            return (ids[:, None] == ids).tril()

        def later_ones_too(ids):
            same = ids[:, None] == ids
            return same.fill_diagonal_(False)

        def later_ones_alone(ids):
            return (ids[:, None] == ids).triu(1)

        def the_one_after(ids):
            return where_heads_look(ids).induction

        def the_last_one_alone(ids):
            found = (ids[:, None] == ids).tril(-1)
            return found & (found.flip(1).cumsum(1).flip(1) == 1)

        def numbers(ids):
            return (ids[:, None] == ids).tril(-1).float()


class by_length:
    class right:
        def by_vectors(weights, values, outputs):
            vectors = weights[..., None] * (values @ outputs)[:, None]
            lengths = vectors.square().sum(dim=-1).sqrt()
            return lengths / lengths.sum(dim=-1, keepdim=True)

        def by_a_loop(weights, values, outputs):
            rows = []
            for head in range(len(weights)):
                sizes = torch.linalg.norm(values[head] @ outputs[head], dim=-1)
                rows.append(F.normalize(weights[head] * sizes, p=1, dim=-1))
            return torch.stack(rows)

        def in_place(weights, values, outputs):
            weights *= (values @ outputs).norm(dim=-1)[:, None]
            weights /= weights.sum(dim=-1, keepdim=True)
            return weights

    class wrong:
        def not_shared_out(weights, values, outputs):
            return weights * (values @ outputs).norm(dim=-1)[:, None]

        def before_the_output(weights, values, outputs):
            lengths = weights * values.norm(dim=-1)[:, None]
            return lengths / lengths.sum(dim=-1, keepdim=True)

        def squared(weights, values, outputs):
            lengths = weights * (values @ outputs).square().sum(dim=-1)[:, None]
            return lengths / lengths.sum(dim=-1, keepdim=True)

        def over_the_queries(weights, values, outputs):
            lengths = weights * (values @ outputs).norm(dim=-1)[:, None]
            return lengths / lengths.sum(dim=-2, keepdim=True)

        def weights_alone(weights, values, outputs):
            return weights

        def two_keys_exchanged(weights, values, outputs):
            lengths = weights * (values @ outputs).norm(dim=-1)[:, None]
            lengths[..., :2] = lengths[..., :2].flip(-1)
            return lengths / lengths.sum(dim=-1, keepdim=True)


class circuit:
    class right:
        def by_the_mask(ids):
            found = where_heads_look(ids).induction.float()
            found[found.sum(dim=1) == 0, 0] = 1
            return found / found.sum(dim=1, keepdim=True)

        def by_a_loop(ids):
            table = torch.zeros(len(ids), len(ids))
            for i in range(len(ids)):
                after = [j + 1 for j in range(i) if ids[j] == ids[i]] or [0]
                table[i, after] = 1 / len(after)
            return table

    class wrong:
        def rests_on_itself(ids):
            found = where_heads_look(ids).induction.float()
            found.diagonal()[found.sum(dim=1) == 0] = 1
            return found / found.sum(dim=1, keepdim=True)

        def looks_at_the_same_token(ids):
            found = (ids[:, None] == ids).tril(-1).float()
            found[found.sum(dim=1) == 0, 0] = 1
            return found / found.sum(dim=1, keepdim=True)

        def sees_what_is_to_come(ids):
            tokens = F.one_hot(ids).float()
            notes = F.pad(tokens[:-1], (0, 0, 1, 0))
            scores = 20 * tokens @ notes.T
            scores[:, 0] = 10
            return scores.softmax(dim=-1)

        def shares_nothing_out(ids):
            found = where_heads_look(ids).induction.float()
            found[found.sum(dim=1) == 0, 0] = 1
            return found

        def rests_too_firmly(ids):
            tokens = F.one_hot(ids).float()
            notes = F.pad(tokens[:-1], (0, 0, 1, 0))
            scores = tokens @ notes.T
            scores[:, 0] = 0.5
            seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)

        def notes_around_the_end(ids):
            found = (ids.roll(1) == ids[:, None]).tril().float()
            found[found.sum(dim=1) == 0, 0] = 1
            return found / found.sum(dim=1, keepdim=True)
