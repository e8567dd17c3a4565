"""Answers to the exercises of `memory/kv_cache`."""
# ruff: noqa: F821  the names are the chapter's


class bytes_per_token:
    class right:
        def one_layer_after_the_other(num_layers, num_kv_heads, head_dim, size):
            total = 0
            for _ in range(num_layers):
                keys = values = num_kv_heads * head_dim * size
                total += keys + values
            return total

        def by_a_tensor(num_layers, num_kv_heads, head_dim, size):
            return torch.empty(num_layers, 2, num_kv_heads, head_dim).numel() * size

    class wrong:
        def keys_alone(num_layers, num_kv_heads, head_dim, size):
            return num_layers * num_kv_heads * head_dim * size

        def one_layer(num_layers, num_kv_heads, head_dim, size):
            return 2 * num_kv_heads * head_dim * size

        def always_in_16_bits(num_layers, num_kv_heads, head_dim, size):
            return 2 * num_layers * num_kv_heads * head_dim * 2

        def heads_of_queries(num_layers, num_kv_heads, head_dim, size):
            return 2 * num_layers * 32 * head_dim * size

        def numbers_for_bytes(num_layers, num_kv_heads, head_dim, size):
            return 2 * num_layers * num_kv_heads * head_dim


class prefill:
    class right:
        def by_places(layer, x, size, cache):
            for start in range(0, x.shape[1], size):
                context = layer(x[:, start : start + size], cache=cache)
            return context[:, -1, None]

        def short_one_first(layer, x, size, cache):
            first = x.shape[1] % size
            if first:
                context = layer(x[:, :first], cache=cache)
            for start in range(first, x.shape[1], size):
                context = layer(x[:, start : start + size], cache=cache)
            return context[:, -1:]

        def by_name(layer, x, size, cache):
            for piece in x.split(size, dim=1):
                context = layer(x=piece, cache=cache)
            return context[:, -1:]

        def the_cache_named_first(layer, x, size, cache):
            for piece in x.split(size, dim=1):
                context = layer(cache=cache, x=piece)
            return context[:, -1:]

    class wrong:
        def all_at_once(layer, x, size, cache):
            return layer(x, cache=cache)[:, -1:]

        def forgets_the_rest(layer, x, size, cache):
            for start in range(0, x.shape[1] - size + 1, size):
                context = layer(x[:, start : start + size], cache=cache)
            return context[:, -1:] if x.shape[1] >= size else layer(x)[:, -1:]

        def no_memory(layer, x, size, cache):
            for piece in x.split(size, dim=1):
                context = layer(piece)
            layer(x[:, -1:], cache=cache)
            return context[:, -1:]

        def a_cache_for_each_chunk(layer, x, size, cache):
            for piece in x.split(size, dim=1):
                context = layer(piece, cache=KVCache())
            return context[:, -1:]

        def one_by_one(layer, x, size, cache):
            for token in x.split(1, dim=1):
                context = layer(token, cache=cache)
            return context

        def the_whole_last_chunk(layer, x, size, cache):
            for piece in x.split(size, dim=1):
                context = layer(piece, cache=cache)
            return context

        def begins_anew_at_each_chunk(layer, x, size, cache):
            for piece in x.split(size, dim=1):
                places = torch.arange(piece.shape[1])
                cache.truncate(0)
                context = layer(piece, positions=places, cache=cache)
            return context[:, -1:]


class settle:
    class right:
        def by_a_product(cache, guessed, chosen):
            same = torch.tensor([a == b for a, b in zip(guessed, chosen, strict=True)])
            kept = int(same.long().cumprod(0).sum()) if guessed else 0
            cache.truncate(cache.length + kept - len(guessed))
            return kept

        def from_the_end(cache, guessed, chosen):
            kept = len(guessed)
            while guessed[:kept] != chosen[:kept]:
                cache.truncate(cache.length - 1)
                kept -= 1
            return kept

        def as_tensors(cache, guessed, chosen):
            same = torch.tensor(guessed) == torch.tensor(chosen)
            kept = int(same.long().cumprod(0).sum())
            cache.truncate(cache.length - len(guessed) + kept)
            return kept

    class wrong:
        def counts_all_that_agree(cache, guessed, chosen):
            kept = sum(a == b for a, b in zip(guessed, chosen, strict=True))
            cache.truncate(cache.length - len(guessed) + kept)
            return kept

        def forgets_the_prompt(cache, guessed, chosen):
            kept = 0
            while kept < len(guessed) and guessed[kept] == chosen[kept]:
                kept += 1
            cache.truncate(kept)
            return kept

        def keeps_all(cache, guessed, chosen):
            kept = 0
            while kept < len(guessed) and guessed[kept] == chosen[kept]:
                kept += 1
            return kept

        def keeps_the_first_wrong_one(cache, guessed, chosen):
            kept = 0
            while kept < len(guessed) and guessed[kept] == chosen[kept]:
                kept += 1
            kept = min(kept + 1, len(guessed))
            cache.truncate(cache.length - len(guessed) + kept)
            return kept

        def empties_the_cache(cache, guessed, chosen):
            kept = 0
            while kept < len(guessed) and guessed[kept] == chosen[kept]:
                kept += 1
            if kept < len(guessed):
                cache.truncate(0)
            return kept

        def all_or_nothing(cache, guessed, chosen):
            if guessed == chosen:
                return len(guessed)
            cache.truncate(cache.length - len(guessed))
            return 0
