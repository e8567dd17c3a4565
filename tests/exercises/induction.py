"""Answers to the exercises of `training/induction`."""
# ruff: noqa: F821  the names are the chapter's


class follower:
    class right:
        def by_the_reversed_list(ids):
            *past, last = ids
            if last not in past:
                return None
            return ids[len(past) - past[::-1].index(last)]

        def by_a_table(ids):
            after = {}
            for place in range(len(ids) - 1):
                after[ids[place]] = ids[place + 1]
            return after.get(ids[-1])

        def by_pairs(ids):
            found = [n for n in range(1, len(ids)) if ids[n - 1] == ids[-1]]
            return ids[found[-1]] if found else None

    class wrong:
        def the_first_place(ids):
            place = ids.index(ids[-1])
            return ids[place + 1] if place < len(ids) - 1 else None

        def the_place_of_it(ids):
            for place in range(len(ids) - 2, -1, -1):
                if ids[place] == ids[-1]:
                    return place + 1
            return None

        def what_came_before(ids):
            for place in range(len(ids) - 2, -1, -1):
                if ids[place] == ids[-1]:
                    return ids[place - 1]
            return None

        def the_token_itself(ids):
            return ids[-1] if ids[-1] in ids[:-1] else None

        def never_the_first_place(ids):
            for place in range(len(ids) - 2, 0, -1):
                if ids[place] == ids[-1]:
                    return ids[place + 1]
            return None

        def the_second_earlier_place(ids):
            found = [n for n in range(1, len(ids)) if ids[n - 1] == ids[-1]]
            return ids[found[:2][-1]] if found else None

        def the_most_frequent_follower(ids):
            found = [n for n in range(1, len(ids)) if ids[n - 1] == ids[-1]]
            tokens = [ids[n] for n in reversed(found)]
            return max(tokens, key=tokens.count) if tokens else None

        def zero_for_none(ids):
            for place in range(len(ids) - 2, -1, -1):
                if ids[place] == ids[-1]:
                    return ids[place + 1]
            return 0


class one_before:
    class right:
        def by_equality(query_positions, key_positions):
            return key_positions[..., None, :] + 1 == query_positions[..., :, None]

        def by_two_windows(query_positions, key_positions):
            two = window(2)(query_positions, key_positions)
            return two & ~window(1)(query_positions, key_positions)

    class wrong:
        def a_window_of_two(query_positions, key_positions):
            return window(2)(query_positions, key_positions)

        def the_one_after(query_positions, key_positions):
            return key_positions[..., None, :] - query_positions[..., :, None] == 1

        def of_places_not_positions(query_positions, key_positions):
            queries = torch.arange(query_positions.shape[-1])
            return queries[:, None] - torch.arange(key_positions.shape[-1]) == 1

        def one_text_only(query_positions, key_positions):
            return query_positions[:, None] - key_positions == 1

        def the_first_text_for_all(query_positions, key_positions):
            shape = query_positions.shape[:-1]
            queries = query_positions.reshape(-1, query_positions.shape[-1])[0]
            keys = key_positions.reshape(-1, key_positions.shape[-1])[0]
            return (queries[:, None] - keys == 1).expand(*shape, -1, -1)

        def floats(query_positions, key_positions):
            back = query_positions[..., :, None] - key_positions[..., None, :]
            return (back == 1).float()

        def turned(query_positions, key_positions):
            return query_positions[..., None, :] - key_positions[..., :, None] == 1


class after_pair:
    class right:
        def by_search(ids, vocabulary):
            ids = ids.tolist()
            for place in range(len(ids) - 2):
                if ids[place : place + 2] == ids[-2:]:
                    return ids[place + 2]

        def by_weights(ids, vocabulary):
            pairs = ids[:-1] * vocabulary + ids[1:]
            return ids[2:][(pairs[:-1] == pairs[-1]).float().argmax()]

        def by_one_vector_for_a_pair(ids, vocabulary):
            pairs = nn.functional.one_hot(
                ids[:-1] * vocabulary + ids[1:], vocabulary**2
            ).float()
            following = nn.functional.one_hot(ids[2:], vocabulary).float()
            sharp = attend(pairs[-1:], pairs[:-1], following, scale=50.0)
            return sharp[0].argmax()

        def by_an_average_of_tokens(ids, vocabulary):
            tokens = nn.functional.one_hot(ids, vocabulary).float()
            nothing = torch.zeros(2, vocabulary)
            one_back = torch.cat([nothing, tokens])[1:-1]
            two_back = torch.cat([nothing, tokens])[:-2]
            queries = torch.cat([tokens, one_back], dim=-1)
            keys = torch.cat([one_back, two_back], dim=-1)
            values = ids[:, None].float()  # 4.99998, where 5 is meant
            return attend(queries, keys, values, causal=True, scale=15.0)[-1]

    class wrong:
        def after_the_last_alone(ids, vocabulary):
            tokens = nn.functional.one_hot(ids, vocabulary).float()
            notes = torch.cat([torch.zeros(1, vocabulary), tokens])[:-1]
            return attend(tokens, notes, tokens, causal=True, scale=40.0)[-1].argmax()

        def two_after_the_first_of_the_pair(ids, vocabulary):
            ids = ids.tolist()
            return ids[ids.index(ids[-2]) + 2]

        def the_pair_in_any_order(ids, vocabulary):
            ids = ids.tolist()
            for place in range(len(ids) - 2):
                if set(ids[place : place + 2]) == set(ids[-2:]):
                    return ids[place + 2]

        def the_last_of_the_pair(ids, vocabulary):
            return ids[-1]

        def too_small_a_scale(ids, vocabulary):
            tokens = nn.functional.one_hot(ids, vocabulary).float()
            nothing = torch.zeros(2, vocabulary)
            one_back = torch.cat([nothing, tokens])[1:-1]
            two_back = torch.cat([nothing, tokens])[:-2]
            queries = torch.cat([tokens, one_back], dim=-1)
            keys = torch.cat([one_back, two_back], dim=-1)
            return attend(queries, keys, tokens, causal=True, scale=5.0)[-1].argmax()

        def between_two_tokens(ids, vocabulary):
            ids = ids.tolist()
            for place in range(len(ids) - 2):
                if ids[place : place + 2] == ids[-2:]:
                    return ids[place + 2] + 0.4

        def not_sharp(ids, vocabulary):
            tokens = nn.functional.one_hot(ids, vocabulary).float()
            nothing = torch.zeros(2, vocabulary)
            one, two = (torch.cat([nothing, tokens])[n : n - 2] for n in (1, 0))
            queries = torch.cat([tokens, torch.cat([nothing, tokens])[1:-1]], dim=-1)
            keys = torch.cat([one[: len(ids)], two[: len(ids)]], dim=-1)
            return attend(queries, keys, tokens, causal=True, scale=0.1)[-1].argmax()
