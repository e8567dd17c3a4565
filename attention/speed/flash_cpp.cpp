// Attention in tiles for a CPU, forward and backward, in the pieces that
// book/speed/flash_cpp.ipynb explains. Compiled for one type of INPUT, and one of
// FACTOR in products.

// [names]
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>

namespace {  // functions of this file alone can be inlined
namespace vec = at::vec;
using at::BFloat16, at::Half, at::native::cpublas::brgemm;
using Int = int64_t;
using T = INPUT;
using C = FACTOR;
using R = std::conditional_t<sizeof(C) == 8, double, float>;  // of scores and sums
using V = vec::Vectorized<R>;
constexpr bool PAIRS = sizeof(C) == 2;
constexpr Int BLOCK_M = 64, BLOCK_N = 256, FEW = 16, AT_ONCE = 128, L = V::size();
constexpr R LOG2_E = 1.44269504088896340736, LN_2 = 0.693147180559945309417,
            INF = INFINITY;
Int up(Int n, Int unit) { return (n + unit - 1) / unit * unit; }

// [product]
// In 64 bits, which the library does not take
void brgemm(Int rows, Int columns, Int inner, Int a_row, Int, Int, bool add,
    const double* a, const double* b, double* c, bool) {
  for (; rows > 0; --rows, a += a_row, c += columns) {
    if (!add) std::fill_n(c, columns, 0);
    for (Int k = 0; k < inner; ++k)
      for (Int j = 0; j < columns; ++j) c[j] += a[k] * b[k * columns + j];
  }
}
// C (+)= A B. In 16 bits, two rows of B are interleaved into one row of pairs.
void product(Int rows, Int columns, Int inner, const C* a, Int a_row, const C* b, R* c,
    bool add) {
  brgemm(rows, columns, inner, a_row, columns, columns, add, a, b, c, PAIRS);
}

// [exp2]
// 2^x for x <= 0 or so: nan stays nan, -inf gives 0
template <bool coarse = false> vec::Vectorized<float> exp2(vec::Vectorized<float> x) {
  using F = vec::Vectorized<float>;
  const F magic(0x1.8p23f + 127);
  x = vec::clamp_min(x, F(-127));
  F z = x + magic, f = x - (z - magic), p;
  if (coarse) {  // enough for 8 bits
    p = vec::fmadd(f, F(5.517167e-2f), F(2.4261113e-1f));
    p = vec::fmadd(p, f, F(6.9326099e-1f)), p = vec::fmadd(p, f, F(9.9992807e-1f));
  } else {
    p = vec::fmadd(f, F(1.32647273e-3f), F(9.67151279e-3f));
    p = vec::fmadd(p, f, F(5.55073374e-2f)), p = vec::fmadd(p, f, F(2.40222421e-1f));
    p = vec::fmadd(p, f, F(6.93146978e-1f)), p = vec::fmadd(p, f, F(1));
  }
  return p * vec::cast<float>(vec::cast<int32_t>(z) << vec::Vectorized<int32_t>(23));
}
template <bool coarse = false> vec::Vectorized<double> exp2(vec::Vectorized<double> x) {
  return x.exp2();
}

// [numbers]
V get(const R* from) { return V::loadu(from); }
template <class X> V get(const X* from) {  // 16 bits
  V x;
  vec::load_to_float(from, x);
  return x;
}
// A row as floats: itself, or a copy
const R* wide(const R* from, Int, R*) { return from; }
template <class X> const R* wide(const X* from, Int width, R* to) {
  for (Int c = 0; c < width; c += L) get(from + c).store(to + c);
  return to;
}
template <class X> void put(X* to, V a, V b) {
  if constexpr (std::is_same_v<X, R>) a.store(to), b.store(to + L);
  else vec::convert_from_float<X>(a, b).store(to);
}
R total(V x) {
  return vec::vec_reduce_all<R>([](V a, V b) { return a + b; }, x);
}
// The total of each of L vectors: neighbours are added until each has one lane
template <Int n = L / 2> V totals(V* x) {
  for (Int i = 0; i < n; ++i) {
    auto [even, odd] = vec::deinterleave2(x[2 * i], x[2 * i + 1]);
    x[i] = even + odd;
  }
  if constexpr (n > 1) return totals<n / 2>(x);
  return x[0];
}
void scaled(const R* from, Int width, R factor, T* to) {
  for (Int c = 0; c < width; c += 2 * L)
    put(to + c, get(from + c) * V(factor), get(from + c + L) * V(factor));
}

// [order]
// Columns become rows, in squares of 16 by 16
template <class X>
void transpose(const X* from, Int from_row, Int rows, Int columns, X* to, Int to_row) {
  for (Int i = 0; i < rows; i += 16)
    for (Int j = 0; j < columns; j += 16)
      vec::transpose_mxn<X, 16, 16>(
          from + i * from_row + j, from_row, to + j * to_row + i, to_row);
}
// The transpose as a right factor: in 16 bits, a pair moves as one word of 32 bits
void turn(const C* from, Int rows, Int width, C* to) {
  using Word = std::conditional_t<PAIRS, float, C>;
  Int words = width * sizeof(C) / sizeof(Word);
  transpose((const Word*)from, words, rows, words, (Word*)to, rows);
}
// The rows as a right factor, not transposed
void weave(const C* from, Int rows, Int width, C* to) {
  constexpr Int k = PAIRS ? 2 : 1;
  for (Int r = 0; r < rows; r += k)
    for (Int c = 0; c < width; ++c)
      for (Int i = 0; i < k; ++i) to[r * width + k * c + i] = from[(r + i) * width + c];
}
// Two rows of BLOCK_M sums, from column c on, into a right factor
void put_two(R* to, Int c, V a, V b) { a.store(to + c), b.store(to + BLOCK_M + c); }
void put_two(BFloat16* to, Int c, vec::Vectorized<float> a, vec::Vectorized<float> b) {
  using I = vec::Vectorized<int32_t>;
  I x = vec::cast<int32_t>(a) + I(0x8000), y = vec::cast<int32_t>(b) + I(0x8000);
  (((x >> I(16)) & I(0xffff)) | (y & I(~0xffff))).store(to + 2 * c);
}

// [call]
struct Matrix {
  char* data;
  Int batch, head, row;
};
struct Call {
  Int batch, heads, groups, queries, keys, width, value_width, causal, window;
  double scale;
  Matrix q, k, v, context, lse, bias, mask, d_context, d_lse, dq, dk, dv, d_bias;
};
// Memory, taken piece by piece; starting at address 0, it counts what will be needed
struct Room {
  Int at = 0;
  template <class X> X* take(Int n) {
    X* piece = (X*)at;
    at = up(at + n * sizeof(X), 64);
    return piece;
  }
};
// [deal]
// Tasks for all threads: each takes the next one when it is done
template <class F> void deal(Int tasks, const F& task) {
  std::atomic<Int> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](Int, Int) {
    for (Int n; (n = next++) < tasks;) task(n, at::get_thread_num());
    at::native::cpublas::brgemm_release(PAIRS);
  });
}

// [bands]
// A band: BLOCK_M rows of all queries that share a head of keys
struct Band {
  Int head, start, rows, from = INT64_MAX, to = 0;  // the keys that any of them sees
  Int first[BLOCK_M], end[BLOCK_M];                 // that each of them sees
  R m[BLOCK_M], l[BLOCK_M], alpha[BLOCK_M];
};
struct Attention {
  const Call& call;
  const Int D = call.width, E = call.value_width, group = call.heads / call.groups;
  const Int rows = group * call.queries, all = call.batch * call.groups;
  const Int bands = up(rows, BLOCK_M) / BLOCK_M,
            blocks = up(call.keys, BLOCK_N) / BLOCK_N;
  const bool biased = call.bias.data;  // then scores are scaled before it is added
  const R scale = biased ? 1 : call.scale, factor = scale * LOG2_E;

  template <class X> static X* place(const Matrix& m, Int batch, Int head, Int row) {
    return (X*)m.data + batch * m.batch + head * m.head + row * m.row;
  }
  template <class X> X* of_query(const Matrix& m, const Band& band, Int r) const {
    Int i = band.start + r, g = band.head % call.groups;
    return place<X>(
        m, band.head / call.groups, g * group + i / call.queries, i % call.queries);
  }
  // What a bias or a mask says of a query, from key j on; null if there is none
  template <class X>
  const X* given_of(const Matrix& m, const Band& band, Int r, Int j) const {
    return m.data ? of_query<X>(m, band, r) + j : nullptr;
  }
  T* of_key(const Matrix& m, Int head, Int j) const {
    return place<T>(m, head / call.groups, head % call.groups, j);
  }
  Band band(Int head, Int n) const {
    Band b{head, n * BLOCK_M, std::min(BLOCK_M, rows - n * BLOCK_M)};
    for (Int r = 0; r < BLOCK_M; ++r) {
      Int end = call.causal
                    ? (b.start + r) % call.queries + 1 + call.keys - call.queries
                    : call.keys;
      b.first[r] = call.window ? std::max<Int>(end - call.window, 0) : 0;
      b.end[r] = r < b.rows ? std::max<Int>(end, 0) : 0;
      b.m[r] = -INF, b.l[r] = 0;
      if (r < b.rows)
        b.from = std::min(b.from, b.first[r]), b.to = std::max(b.to, b.end[r]);
    }
    return b;
  }
  // How many keys of a tile are computed: few shapes, so that few products are prepared
  Int width_of(const Band& band, Int j) const {
    return std::min(BLOCK_N, up(band.to - j, 64));
  }
  void copy(const T* from, Int width, C* to) const {
    if constexpr (std::is_same_v<T, C>) std::copy_n(from, width, to);
    else
      for (Int c = 0; c < width; c += L) get(from + c).store(to + c);
  }
  void copy_band(const Matrix& m, const Band& band, Int width, C* to) const {
    for (Int r = 0; r < band.rows; ++r)
      copy(of_query<T>(m, band, r), width, to + r * width);
    std::fill(to + band.rows * width, to + BLOCK_M * width, C(0));
  }
  void copy_block(const Matrix& m, Int head, Int j, Int width, C* to) const {
    Int n = std::min(BLOCK_N, call.keys - j);
    for (Int i = 0; i < n; ++i) copy(of_key(m, head, j + i), width, to + i * width);
    std::fill(to + n * width, to + BLOCK_N * width, C(0));
  }

  // [scores]
  // A column for each query, a row for each key; false if a mask hides all of it
  bool scores(
      const Band& band, Int j, const C* keys, const C* qt, R* s, R* given) const {
    Int n = width_of(band, j), real = std::min(n, call.keys - j);
    bool seen = !call.mask.data, hidden = false, edge = false;
    for (Int r = 0; r < band.rows && call.mask.data; ++r) {
      const char* mask = given_of<char>(call.mask, band, r, j);
      seen |= std::memchr(mask, 1, real) != nullptr;
      hidden |= std::memchr(mask, 0, real) != nullptr;
    }
    if (!seen) return false;
    product(n, BLOCK_M, D, keys, D, qt, s, false);
    if (biased || hidden) add_given(band, j, n, real, s, given);
    R first[BLOCK_M], end[BLOCK_M];
    for (Int r = 0; r < BLOCK_M; ++r) {
      first[r] = std::clamp<Int>(band.first[r] - j, 0, n);
      end[r] = std::clamp<Int>(band.end[r] - j, 0, n);
      edge |= first[r] > 0 || end[r] < n;
    }
    for (Int i = 0; i < n && edge; ++i)
      for (Int c = 0; c < BLOCK_M; c += L) {
        V inside = (get(first + c) <= V(i)) & (V(i) < get(end + c));
        V::blendv(V(-INF), get(s + i * BLOCK_M + c), inside).store(s + i * BLOCK_M + c);
      }
    return true;
  }
  // The bias, and -inf where the mask hides
  void add_given(const Band& band, Int j, Int n, Int real, R* s, R* given) const {
    std::fill_n(given, BLOCK_M * BLOCK_N, 0);
    for (Int r = 0; r < band.rows; ++r) {
      const R* bias = given_of<R>(call.bias, band, r, j);
      const char* mask = given_of<char>(call.mask, band, r, j);
      R* to = given + r * BLOCK_N;
      if (bias) std::copy_n(bias, real, to);
      for (Int c = 0; c < real && mask; ++c) to[c] = mask[c] ? to[c] : -INF;
    }
    transpose(given, BLOCK_N, BLOCK_M, n, given + BLOCK_M * BLOCK_N, BLOCK_M);
    for (Int c = 0; c < n * BLOCK_M; c += L) {
      V more = get(given + BLOCK_M * BLOCK_N + c);
      V score = biased ? get(s + c) * V(call.scale) : get(s + c);
      V::blendv(score + more, more, more == V(-INF)).store(s + c);  // hides nan, too
    }
  }

  // [softmax]
  // Scores become weights, measured from the largest of each column so far
  void softmax(Band& band, Int n, const R* s, C* p, R* acc) const {
    for (Int c = 0; c < BLOCK_M; c += 4 * L) {
      V top[4], sum[4];
      for (int v = 0; v < 4; ++v) top[v] = V(-INF), sum[v] = V(0);
      for (Int i = 0; i < n; ++i)
        for (int v = 0; v < 4; ++v)
          top[v] = vec::clamp_min(get(s + i * BLOCK_M + c + v * L), top[v]);
      for (int v = 0; v < 4; ++v) {
        V old = get(band.m + c + v * L), now = vec::maximum(old, top[v]);
        now.store(band.m + c + v * L);
        top[v] = V::blendv(now, V(0), now == V(-INF));
        exp2((old - top[v]) * V(factor)).store(band.alpha + c + v * L);
      }
      for (Int i = 0; i < n; i += 2)
        for (int v = 0; v < 4; ++v) {
          const R* at = s + i * BLOCK_M + c + v * L;
          V a = exp2<PAIRS>((get(at) - top[v]) * V(factor));
          V b = exp2<PAIRS>((get(at + BLOCK_M) - top[v]) * V(factor));
          sum[v] = sum[v] + (a + b), put_two(p + i * BLOCK_M, c + v * L, a, b);
        }
      for (int v = 0; v < 4; ++v) {
        R* l = band.l + c + v * L;
        vec::fmadd(get(l), get(band.alpha + c + v * L), sum[v]).store(l);
      }
    }
    if (std::all_of(band.alpha, band.alpha + BLOCK_M, [](R a) { return a == 1; }))
      return;
    for (Int e = 0; e < E * BLOCK_M; e += BLOCK_M)
      for (Int c = 0; c < BLOCK_M; c += L)
        (get(acc + e + c) * get(band.alpha + c)).store(acc + e + c);
  }

  // [band]
  struct Desk {
    C *q, *qt, *p;
    R *s, *acc, *given;
  };
  Desk desk(Room& room) const {
    return {room.take<C>(std::max(BLOCK_M * D, BLOCK_N * E)), room.take<C>(BLOCK_M * D),
        room.take<C>(BLOCK_N * BLOCK_M), room.take<R>(BLOCK_N * BLOCK_M),
        room.take<R>(BLOCK_M * E), room.take<R>(std::max(2 * BLOCK_N, E) * BLOCK_M)};
  }
  void forward_band(Band band, const C* keys, const C* values_t, Room room) const {
    auto [q, qt, p, s, acc, given] = desk(room);
    if (!PAIRS) p = (C*)s;
    copy_band(call.q, band, D, q);
    turn(q, BLOCK_M, D, qt);
    std::fill_n(acc, BLOCK_M * E, 0);
    for (Int j = band.from / BLOCK_N * BLOCK_N; j < band.to; j += BLOCK_N) {
      if (!scores(band, j, keys + j * D, qt, s, given)) continue;
      Int n = width_of(band, j);
      softmax(band, n, s, p, acc);
      product(E, BLOCK_M, n, values_t + j * E, BLOCK_N, p, acc, true);
    }
    transpose(acc, BLOCK_M, E, BLOCK_M, given, E);
    finish(band, given);
  }
  void finish(const Band& band, const R* acc) const {
    for (Int r = 0; r < band.rows; ++r) {
      R l = band.l[r];
      T* to = of_query<T>(call.context, band, r);
      if (l == 0) std::fill_n(to, E, T(0));  // even if a value is nan
      else scaled(acc + r * E, E, 1 / l, to);
      *of_query<R>(call.lse, band, r) = band.m[r] * scale + std::log2(l) * LN_2;
    }
  }

  // [forward]
  void forward_many() const {
    Int threads = at::get_num_threads(),
        at_once = std::min(all, up(8 * threads, bands) / bands);
    Room size;
    desk(size);
    Int packed = blocks * BLOCK_N * (D + E) * sizeof(C),
        whole = at_once * packed + threads * size.at;
    auto memory = c10::GetCPUAllocator()->allocate(whole);
    auto keys = [&](Int n) { return (C*)((char*)memory.get() + n * packed); };
    auto mine = [&](Int thread) { return Room{Int(keys(at_once)) + thread * size.at}; };
    for (Int start = 0; start < all; start += at_once) {
      Int heads = std::min(at_once, all - start);
      deal(heads * blocks, [&](Int n, Int thread) {
        Int head = n / blocks, j = n % blocks * BLOCK_N;
        C* to = keys(head);
        Room room = mine(thread);
        C* values = desk(room).q;
        copy_block(call.k, start + head, j, D, to + j * D);
        copy_block(call.v, start + head, j, E, values);
        transpose(values, E, BLOCK_N, E, to + blocks * BLOCK_N * D + j * E, BLOCK_N);
      });
      deal(heads * bands,
          [&](Int n, Int thread) {  // the last bands first: they see most
            C* from = keys(n % heads);
            Band next = band(start + n % heads, bands - 1 - n / heads);
            forward_band(next, from, from + blocks * BLOCK_N * D, mine(thread));
          });
    }
  }

  // [few]
  // For few queries, keys and values are read once, where they lie
  void few(Band& band, Int from, Int to, const R* q, R* tile, R* acc) const {
    constexpr Int n = AT_ONCE;
    const Int k_row = call.k.row, v_row = call.v.row;
    const T *k = of_key(call.k, band.head, from), *v = of_key(call.v, band.head, from);
    R lines[FEW * n];
    for (Int j = from; j < to; j += n, k += n * k_row, v += n * v_row) {
      Int real = std::min(n, to - j);
      for (Int i = 0; i < real; i += L) {
        for (Int x = i; x < i + L; ++x) fetch(v + x * v_row, E);
        dots(band.rows, k + i * k_row, std::min(L, real - i), q, tile, lines + i);
      }
      for (Int r = 0; r < band.rows; ++r) {
        R* line = lines + r * n;
        std::fill(line + real, line + n, -INF);
        hide(band, r, j, real, line);
        soften(band, r, n, line, acc + r * E);
      }
      const T* next = k + n * k_row;
      Int r = 0;
      for (; r + 8 <= band.rows; r += 8) add<8>(r, lines, real, v, next, acc);
      for (; r + 4 <= band.rows; r += 4) add<4>(r, lines, real, v, next, acc);
      for (; r < band.rows; ++r) add<1>(r, lines, real, v, next, acc);
    }
  }
  // A row will be needed soon; no fault if it is not there
  static void fetch(const T* row, Int width) {
    for (Int c = 0; c < width; c += 64 / sizeof(T)) __builtin_prefetch(row + c, 0, 2);
  }
  // Scores of as many keys as a vector has lanes, with each query
  void dots(Int rows, const T* k, Int n, const R* q, R* tile, R* lines) const {
    const R* key[L];
    for (Int i = 0; i < L; ++i)
      key[i] = wide(k + std::min(i, n - 1) * call.k.row, D, tile + i * D);
    for (Int r = 0; r < rows; ++r) {
      V sum[L];
      for (Int i = 0; i < L; ++i) sum[i] = V(0);
      for (Int d = 0; d < D; d += L)
        for (Int i = 0; i < L; ++i)
          sum[i] = vec::fmadd(get(q + r * D + d), get(key[i] + d), sum[i]);
      totals(sum).store(lines + r * AT_ONCE);
    }
  }
  // Weighted values, for N queries from row on, while the next keys are fetched
  template <Int N>
  void add(Int row, const R* weights, Int n, const T* v, const T* next, R* acc) const {
    weights += row * AT_ONCE, acc += row * E;
    for (Int e = 0; e < E; e += 2 * L) {
      V a[N], b[N];  // sums of this block alone: a long sum loses small terms
      for (Int r = 0; r < N; ++r) a[r] = b[r] = V(0);
      for (Int i = 0; i < n; ++i) {
        fetch(next + i * call.k.row + e, 2 * L);
        V x = get(v + i * call.v.row + e), y = get(v + i * call.v.row + e + L);
        for (Int r = 0; r < N; ++r) {
          V weight(weights[r * AT_ONCE + i]);
          a[r] = vec::fmadd(weight, x, a[r]), b[r] = vec::fmadd(weight, y, b[r]);
        }
      }
      for (Int r = 0; r < N; ++r) {
        R* at = acc + r * E + e;
        put(at, get(at) + a[r], get(at + L) + b[r]);
      }
    }
  }
  // Scores of a query become weights, as in softmax
  void soften(Band& band, Int r, Int n, R* line, R* acc) const {
    V top(band.m[r]), sum(0);
    for (Int i = 0; i < n; i += L) top = vec::clamp_min(get(line + i), top);
    R now = vec::vec_reduce_all<R>([](V a, V b) { return vec::maximum(a, b); }, top);
    R base = now == -INF ? 0 : now, alpha = std::exp2((band.m[r] - base) * factor);
    for (Int i = 0; i < n; i += 2 * L) {
      V a = exp2((get(line + i) - V(base)) * V(factor));
      V b = exp2((get(line + i + L) - V(base)) * V(factor));
      put(line + i, a, b), sum = sum + (a + b);
    }
    band.m[r] = now, band.l[r] = band.l[r] * alpha + total(sum);
    for (Int e = 0; e < E && alpha != 1; ++e) acc[e] *= alpha;
  }
  void hide(const Band& band, Int r, Int j, Int n, R* line) const {
    const R* bias = given_of<R>(call.bias, band, r, j);
    const char* mask = given_of<char>(call.mask, band, r, j);
    for (Int i = 0; i < n && bias; ++i)
      line[i] = bias[i] == -INF ? -INF : line[i] * R(call.scale) + bias[i];
    for (Int i = 0; i < n && mask; ++i) line[i] = mask[i] ? line[i] : -INF;
    std::fill_n(line, std::clamp<Int>(band.first[r] - j, 0, n), -INF);
    std::fill(line + std::clamp<Int>(band.end[r] - j, 0, n), line + n, -INF);
  }

  // [merge]
  // Another part of the keys joins the first
  void merge(Band& a, const Band& b, R* acc, const R* other) const {
    for (Int r = 0; r < a.rows; ++r) {
      R top = std::max(a.m[r], b.m[r]), base = top == -INF ? 0 : top;
      R x = std::exp2((a.m[r] - base) * factor),
        y = std::exp2((b.m[r] - base) * factor);
      a.m[r] = top, a.l[r] = x * a.l[r] + y * b.l[r];
      for (Int e = r * E; e < (r + 1) * E; ++e) acc[e] = x * acc[e] + y * other[e];
    }
  }
  void forward_few() const {
    Int parts = std::clamp<Int>(8 * at::get_num_threads() / all, 1, blocks);
    Int size = rows * (D + E) + L * D;
    std::vector<Band> part(all * parts);
    std::vector<R> memory(all * parts * size);
    auto q = [&](Int n) { return memory.data() + n * size; };
    auto acc = [&](Int n) { return q(n) + rows * D + L * D; };
    deal(all * parts, [&](Int n, Int) {
      Band& mine = part[n] = band(n / parts, 0);
      for (Int r = 0; r < rows; ++r)
        for (Int d = 0; d < D; d += L)
          get(of_query<T>(call.q, mine, r) + d).store(q(n) + r * D + d);
      Int count = std::max<Int>(mine.to - mine.from, 0), k = n % parts;
      Int start = mine.from + count * k / parts,
          end = mine.from + count * (k + 1) / parts;
      few(mine, start, end, q(n), q(n) + rows * D, acc(n));
    });
    deal(all, [&](Int head, Int) {
      Int n = head * parts;
      for (Int k = 1; k < parts; ++k) merge(part[n], part[n + k], acc(n), acc(n + k));
      finish(part[n], acc(n));
    });
  }

  // [backward]
  struct Rows {  // of a band: two matrices, each as both kinds of right factor, and
                 // what is summed
    C *q, *qt, *go, *got;
    R *dqt, *lse, *delta;
  };
  struct Block {
    C *k, *kt, *v, *rows, *p, *g, *woven;
    R *s, *ds, *given, *dk, *dv;
  };
  Rows rows_of(Room& room) const {
    return {room.take<C>(BLOCK_M * D), room.take<C>(BLOCK_M * D),
        room.take<C>(BLOCK_M * E), room.take<C>(BLOCK_M * E), room.take<R>(BLOCK_M * D),
        room.take<R>(BLOCK_M), room.take<R>(BLOCK_M)};
  }
  Block block_of(Room& room) const {
    return {room.take<C>(BLOCK_N * D), room.take<C>(BLOCK_N * D),
        room.take<C>(BLOCK_N * E), room.take<C>(BLOCK_M * std::max(D, E)),
        room.take<C>(BLOCK_N * BLOCK_M), room.take<C>(BLOCK_N * BLOCK_M),
        room.take<C>(BLOCK_N * BLOCK_M), room.take<R>(BLOCK_N * BLOCK_M),
        room.take<R>(BLOCK_N * BLOCK_M), room.take<R>(2 * BLOCK_N * BLOCK_M),
        room.take<R>(BLOCK_N * D), room.take<R>(BLOCK_N * E)};
  }
  void prepare(const Band& band, const Rows& to, C* room) const {
    copy_band(call.q, band, D, room);
    turn(room, BLOCK_M, D, to.qt);
    weave(room, BLOCK_M, D, to.q);
    copy_band(call.d_context, band, E, room);
    turn(room, BLOCK_M, E, to.got);
    weave(room, BLOCK_M, E, to.go);
    std::fill_n(to.dqt, BLOCK_M * D, 0);
    std::fill_n(to.delta, BLOCK_M, 0);
    std::fill_n(to.lse, BLOCK_M, INF);  // of a row that sees nothing
    for (Int r = 0; r < band.rows; ++r) {
      const T *o = of_query<T>(call.context, band, r),
              *go = of_query<T>(call.d_context, band, r);
      V sum(0);
      for (Int e = 0; e < E; e += L) sum = vec::fmadd(get(o + e), get(go + e), sum);
      to.delta[r] = total(sum) - *of_query<R>(call.d_lse, band, r);
      R lse = *of_query<R>(call.lse, band, r);
      if (lse != -INF) to.lse[r] = lse / scale;  // in units of the scores
    }
  }

  // [gradient]
  // Scores become weights, and the gradients of weights become those of scores
  void to_weights(
      Int n, const Rows& rows, const Block& to, C* p, C* g, C* woven) const {
    for (Int i = 0; i < n; i += 2)
      for (Int c = 0; c < BLOCK_M; c += 2 * L) {
        V ds[2][2];
        for (int k = 0; k < 2; ++k) {
          Int at = (i + k) * BLOCK_M + c;
          V w[2];
          for (int v = 0; v < 2; ++v) {
            Int x = at + v * L, y = c + v * L;
            V power = (get(to.s + x) - get(rows.lse + y)) * V(factor);
            w[v] =
                exp2<PAIRS>(vec::clamp_max(power, V(0)));  // scores of 1e30 are rounded
            ds[k][v] = w[v] * (get(to.ds + x) - get(rows.delta + y));
          }
          put(p + at, w[0], w[1]), put(g + at, ds[k][0], ds[k][1]);
        }
        for (int v = 0; v < 2 && PAIRS; ++v)
          put_two(woven + i * BLOCK_M, c + v * L, ds[0][v], ds[1][v]);
      }
  }
  // The gradients of a head of keys, from blocks part, part + parts, ...
  void backward_part(Int head, Int part, Int parts, Room room) const {
    std::vector<Rows> mine;
    std::vector<Band> band_of;
    for (Int n = 0; n < bands; ++n)
      mine.push_back(rows_of(room)), band_of.push_back(band(head, n));
    Block b = block_of(room);
    C *p = PAIRS ? b.p : (C*)b.s, *g = PAIRS ? b.g : (C*)b.ds,
      *woven = PAIRS ? b.woven : g;
    for (Int n = 0; n < bands; ++n) prepare(band_of[n], mine[n], b.rows);
    for (Int j = part * BLOCK_N; j < call.keys; j += parts * BLOCK_N) {
      copy_block(call.k, head, j, D, b.k);
      copy_block(call.v, head, j, E, b.v);
      transpose(b.k, D, BLOCK_N, D, b.kt, BLOCK_N);
      std::fill_n(b.dk, BLOCK_N * D, 0);
      std::fill_n(b.dv, BLOCK_N * E, 0);
      for (Int m = 0; m < bands; ++m) {
        const Band& rows = band_of[m];
        if (j + BLOCK_N <= rows.from || j >= rows.to) continue;
        if (!scores(rows, j, b.k, mine[m].qt, b.s, b.given)) continue;
        Int n = width_of(rows, j);
        product(n, BLOCK_M, E, b.v, E, mine[m].got, b.ds, false);
        to_weights(n, mine[m], b, p, g, woven);
        for (Int r = 0; r < rows.rows && call.d_bias.data; ++r)
          for (Int i = 0; i < std::min(n, call.keys - j); ++i)
            of_query<R>(call.d_bias, rows, r)[j + i] = b.ds[i * BLOCK_M + r];
        product(n, E, BLOCK_M, p, BLOCK_M, mine[m].go, b.dv, true);
        product(n, D, BLOCK_M, g, BLOCK_M, mine[m].q, b.dk, true);
        product(D, BLOCK_M, n, b.kt, BLOCK_N, woven, mine[m].dqt, true);
      }
      for (Int i = 0; i < std::min(BLOCK_N, call.keys - j); ++i) {
        scaled(b.dk + i * D, D, call.scale, of_key(call.dk, head, j + i));
        scaled(b.dv + i * E, E, 1, of_key(call.dv, head, j + i));
      }
    }
  }

  // [sums]
  void finish_backward(Int head, Int parts, Room room, Int size) const {
    for (Int n = 0; n < bands; ++n) {
      Room later{room.at};
      R* dqt = rows_of(room).dqt;
      for (Int part = 1; part < parts; ++part) {
        later.at += size;
        Room its = later;
        const R* more = rows_of(its).dqt;
        for (Int c = 0; c < BLOCK_M * D; c += L)
          (get(dqt + c) + get(more + c)).store(dqt + c);
      }
      Band rows = band(head, n);
      std::vector<R> dq(BLOCK_M * D);
      transpose(dqt, BLOCK_M, D, BLOCK_M, dq.data(), D);
      for (Int r = 0; r < rows.rows; ++r)
        scaled(&dq[r * D], D, call.scale, of_query<T>(call.dq, rows, r));
    }
  }
  void backward() const {
    Int threads = at::get_num_threads(),
        parts = std::clamp<Int>(2 * threads / all, 1, blocks);
    Room one;
    for (Int n = 0; n < bands; ++n) rows_of(one);
    block_of(one);
    auto memory =
        c10::GetCPUAllocator()->allocate((parts > 1 ? all * parts : threads) * one.at);
    auto room = [&](Int n) { return Room{Int(memory.get()) + n * one.at}; };
    deal(all * parts, [&](Int n, Int thread) {
      Room mine = room(parts > 1 ? n : thread);
      backward_part(n / parts, n % parts, parts, mine);
      if (parts == 1) finish_backward(n, 1, mine, 0);
    });
    for (Int head = 0; head < all && parts > 1; ++head)
      finish_backward(head, parts, room(head * parts), one.at);
  }
};

}  // namespace

// [entry]
// Null, or what went wrong, until this thread's next call
extern "C" const char* flash(const Call* call, int backward) try {
  Attention attention{*call};
  if (backward) attention.backward();
  else if (attention.rows <= FEW) attention.forward_few();
  else attention.forward_many();
  return nullptr;
} catch (const std::exception& error) {
  thread_local std::string why;
  why = error.what();
  return why.c_str();
}
