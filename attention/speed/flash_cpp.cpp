// Attention in tiles for a CPU, forward and backward: book/speed/flash_cpp.ipynb
// explains it, in the pieces that are marked here.

// [headers]
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

using Int = int64_t;
Int thread() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
template <class T> using Precise = std::conditional_t<std::is_same_v<T, double>, double, float>;

// [vectors]
#if defined(__AVX512F__)
constexpr int BYTES = 64, NR = 4;  // of a register; registers side by side
#elif defined(__AVX__)
constexpr int BYTES = 32, NR = 2;
#else
constexpr int BYTES = 16, NR = 4;
#endif
constexpr int MR = 6, FEW = 3;  // rows at once; rows of a band that packs no keys
constexpr Int BLOCK_M = 96, BLOCK_N = 192, DEPTH = 96;

template <class R> struct Vectors {
  using Bits = std::conditional_t<sizeof(R) == 4, int32_t, int64_t>;
  typedef R V __attribute__((vector_size(BYTES)));
  typedef Bits I __attribute__((vector_size(BYTES)));
  typedef uint16_t H __attribute__((vector_size(BYTES / sizeof(R) * 2)));
};
template <class R> using V = typename Vectors<R>::V;
template <class R> using I = typename Vectors<R>::I;
template <class R> constexpr Int W = BYTES / sizeof(R);
template <class R> constexpr Int PANEL = NR * W<R>;

template <class R> inline V<R> load(const R* from) {
  V<R> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
template <class R> inline void store(R* to, V<R> x) { std::memcpy(to, &x, sizeof x); }
template <class R> inline V<R> all(R x) { return x - V<R>{}; }
template <class X> inline X larger(X a, X b) { return a > b ? a : b; }  // b if one is nan
template <class R> inline R total(V<R> x) {
  R sum = 0;
  for (int l = 0; l < W<R>; ++l) sum += x[l];
  return sum;
}
Int up(Int n, Int unit) { return (n + unit - 1) / unit * unit; }

// [numbers]
// 16 bits to 32 and back
inline V<float> widen(const float* from) { return load(from); }
inline V<double> widen(const double* from) { return load(from); }
inline V<float> widen(const BFloat16* from) {
  Vectors<float>::H h;
  std::memcpy(&h, from, sizeof h);
  return (V<float>)(__builtin_convertvector(h, I<float>) << 16);
}
inline V<float> widen(const Half* from) {
  Vectors<float>::H h;
  std::memcpy(&h, from, sizeof h);
  I<float> x = __builtin_convertvector(h, I<float>), size = x & 0x7fff;
  I<float> number = (I<float>)((V<float>)(size << 13) * 0x1p112f);
  return (V<float>)((size > 0x7bff ? (size << 13) | 0x7f800000 : number) | ((x & 0x8000) << 16));
}
inline void narrow(float* to, V<float> x) { store(to, x); }
inline void narrow(double* to, V<double> x) { store(to, x); }
inline void narrow(BFloat16* to, V<float> x) {
  I<float> u = (I<float>)x, rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  auto h = __builtin_convertvector(x == x ? rounded : (u >> 16) | 0x40, Vectors<float>::H);
  std::memcpy(to, &h, sizeof h);
}
inline void narrow(Half* to, V<float> x) {
  I<float> u = (I<float>)x, size = u & 0x7fffffff, sign = (u >> 16) & 0x8000;
  I<float> normal = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  I<float> small = (I<float>)((V<float>)size + 0.5f) - 0x3f000000;
  I<float> y = size < (113 << 23) ? small : normal;
  y = size >= 0x47800000 ? (size > 0x7f800000 ? I<float>{} + 0x7e00 : I<float>{} + 0x7c00) : y;
  auto h = __builtin_convertvector(y | sign, Vectors<float>::H);
  std::memcpy(to, &h, sizeof h);
}

// [exp2]
// 2^x for x <= 0 or so; nan stays nan, -inf gives 0
inline V<float> exp2(V<float> x) {
  const V<float> magic = all(0x1.8p23f + 127);
  x = larger(all(-127.f), x);
  V<float> z = x + magic, f = x - (z - magic);
  V<float> p = f * 1.32647273e-3f + 9.67151279e-3f;
  p = p * f + 5.55073374e-2f;
  p = p * f + 2.40222421e-1f;
  p = p * f + 6.93146978e-1f;
  p = p * f + 1.f;
  return p * (V<float>)((I<float>)z << 23);
}
inline V<double> exp2(V<double> x) {
  const V<double> magic = all(0x1.8p52 + 1023);
  x = larger(all(-1023.), x);
  V<double> z = x + magic, f = (x - (z - magic)) * 0.693147180559945309, p = all(1.);
  for (double n = 13; n > 0; --n) p = p * f / n + 1.;
  return p * (V<double>)((I<double>)z << 52);
}

// [product]
// C (+)= A B, for M rows of A: rows and columns of A are so far apart; B and C have rows
template <int M, int N, class R> inline __attribute__((always_inline)) void micro(
    Int K, const R* a, Int row, Int column, const R* b, Int b_row, R* c, Int c_row, bool add) {
  V<R> sum[M][N] = {};
  for (Int k = 0; k < K; ++k, a += column, b += b_row) {
    V<R> line[N];
    for (int n = 0; n < N; ++n) line[n] = load(b + n * W<R>);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) sum[m][n] += a[m * row] * line[n];
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      R* to = c + m * c_row + n * W<R>;
      store(to, add ? load(to) + sum[m][n] : sum[m][n]);
    }
}
template <int M, int N, class R> void strip(Int rows, Int K, const R* a, Int row, Int column,
    const R* b, Int b_row, R* c, Int c_row, bool add) {
  Int m = 0;
  for (; m + M <= rows; m += M)
    micro<M, N>(K, a + m * row, row, column, b, b_row, c + m * c_row, c_row, add);
  if constexpr (M > 1)
    if (m < rows)
      strip<M / 2, N>(rows - m, K, a + m * row, row, column, b, b_row, c + m * c_row, c_row, add);
}
// B in panels of PANEL columns that lie `b_panel` apart
template <class R> void product(Int rows, Int columns, Int K, const R* a, Int row, Int column,
    const R* b, Int b_row, Int b_panel, R* c, Int c_row, bool add) {
  for (Int n = 0; n < columns; n += PANEL<R>, b += b_panel)
    for (Int k = 0; k < K; k += DEPTH) {
      const R *x = a + k * column, *y = b + k * b_row;
      Int deep = std::min<Int>(DEPTH, K - k);
      bool more = add || k;
      if (n + PANEL<R> <= columns)
        strip<MR, NR>(rows, deep, x, row, column, y, b_row, c + n, c_row, more);
      else
        for (Int w = n; w < columns; w += W<R>)
          strip<MR, 1>(rows, deep, x, row, column, y + w - n, b_row, c + w, c_row, more);
    }
}

// [call]
struct Matrix {
  char* data;
  Int batch, head, row;
  template <class T> T* at(Int b, Int h, Int i) const {
    return (T*)data + b * batch + h * head + i * row;
  }
};
struct Call {
  Int batch, heads, groups, queries, keys, width, value_width, causal, window, threads;
  double scale;
  Matrix q, k, v, context, lse, bias, mask, d_context, d_lse, dq, dk, dv, d_bias;
};

// [pack]
// rows of numbers to rows of floats, the rest of each row filled with zeros
template <class T, class R>
void copy_rows(const T* from, Int step, Int rows, Int width, R* to, Int to_step, R factor = 1) {
  for (Int r = 0; r < rows; ++r, from += step, to += to_step) {
    Int c = 0;
    for (; c + W<R> <= width; c += W<R>) store(to + c, widen(from + c) * factor);
    if (c == width) continue;
    T rest[W<R>] = {};
    std::memcpy(rest, from + c, (width - c) * sizeof(T));
    store(to + c, widen(rest) * factor);
  }
}
template <int H, class R, size_t... L>
inline void swap(V<R>& a, V<R>& b, std::index_sequence<L...>) {
#ifdef __clang__
  V<R> x = __builtin_shufflevector(a, b, (L & H ? W<R> + L - H : L)...),
       y = __builtin_shufflevector(a, b, (L & H ? W<R> + L : L + H)...);
#else
  V<R> x = __builtin_shuffle(a, b, I<R>{(L & H ? W<R> + L - H : L)...}),
       y = __builtin_shuffle(a, b, I<R>{(L & H ? W<R> + L : L + H)...});
#endif
  a = x;
  b = y;
}
template <int H, class R> inline void transpose(V<R>* x) {
  for (int i = 0; i < W<R>; ++i)
    if (!(i & H)) swap<H, R>(x[i], x[i + H], std::make_index_sequence<W<R>>());
  if constexpr (H > 1) transpose<H / 2, R>(x);
}
// W rows of keys become columns of a panel
template <class R> void pack_columns(const R* from, Int step, Int width, R* panel) {
  for (Int c = 0; c < width; c += W<R>) {
    V<R> square[W<R>];
    for (Int r = 0; r < W<R>; ++r) square[r] = load(from + r * step + c);
    transpose<W<R> / 2, R>(square);
    for (Int r = 0; r < std::min<Int>(W<R>, width - c); ++r)
      store(panel + (c + r) * PANEL<R>, square[r]);
  }
}
template <class R> R* column(R* columns, Int n, Int width) {
  return columns + n / PANEL<R> * PANEL<R> * width + n % PANEL<R>;
}

// [rows]
// The rest is about one call

template <class T> struct Pass {
  using R = Precise<T>;
  static constexpr R LOG2_E = 1.44269504088896340736, LN_2 = 0.693147180559945309417,
                     INF = INFINITY;
  const Call& call;
  const Int group = call.heads / call.groups, D = up(call.width, W<R>),
            E = up(call.value_width, W<R>);
  const Int earlier = call.keys - call.queries, blocks = up(call.keys, BLOCK_N) / BLOCK_N;
  const bool stacked =
      group * call.queries <= BLOCK_M;  // the query heads of a key head are one band
  const Int bands = stacked ? 1 : group * (up(call.queries, BLOCK_M) / BLOCK_M);  // of a key head

  struct Band {
    Int batch, head, start, rows;
  };  // some rows of a head, or of several if stacked
  Band band(Int batch, Int g, Int n) const {
    if (stacked) return {batch, g * group, 0, group * call.queries};
    Int per_head = bands / group, start = n % per_head * BLOCK_M;
    return {batch, g * group + n / per_head, start, std::min(BLOCK_M, call.queries - start)};
  }
  template <class X> X* row(const Matrix& matrix, const Band& band, Int r) const {
    r += band.start;
    return matrix.at<X>(band.batch, band.head + r / call.queries, r % call.queries);
  }
  Int end(const Band& band, Int r) const {
    return call.causal ? earlier + (band.start + r) % call.queries + 1 : call.keys;
  }
  Int first(const Band& band, Int r) const {
    return call.window ? std::max<Int>(0, end(band, r) - call.window) : 0;
  }
  // The blocks of keys that a band sees, from .first to before .second
  std::pair<Int, Int> visible(const Band& band) const {
    if (stacked && call.causal) {
      Band all{0, 0, 0, call.queries};
      return {first(all, 0) / BLOCK_N, blocks};
    }
    return {first(band, 0) / BLOCK_N, (end(band, band.rows - 1) + BLOCK_N - 1) / BLOCK_N};
  }
  Int width_of(Int block) const { return std::min(BLOCK_N, call.keys - block * BLOCK_N); }

  // [blocks]
  // One block of keys and values: as columns for products, or the rows themselves
  struct Block {
    const R *columns, *rows, *values;
    Int row, value_row;
  };
  Int unit() const { return BLOCK_N * (call.width + E); }
  // What is read next comes nearer while this is computed
  void fetch(const Matrix& matrix, Int batch, Int g, Int j, Int width) const {
    for (Int i = j; i < std::min(j + W<R>, call.keys); ++i)
      for (Int c = 0; c < width; c += 64 / Int(sizeof(T)))
        __builtin_prefetch(matrix.at<T>(batch, g, i) + c, 0, 2);
  }
  Block pack(Int batch, Int g, Int block, R* to, R* rows) const {
    Int j = block * BLOCK_N, n = width_of(block);
    for (Int c = 0; c < n; c += W<R>) {
      Int few = std::min(W<R>, n - c);
      copy_rows(call.k.at<T>(batch, g, j + c), call.k.row, few, call.width, rows, D);
      pack_columns(rows, D, call.width, column(to, c, call.width));
      copy_rows(call.v.at<T>(batch, g, j + c), call.v.row, few, call.value_width,
          to + BLOCK_N * call.width + c * E, E);
      fetch(call.k, batch, g, j + BLOCK_N + c, call.width),
          fetch(call.v, batch, g, j + BLOCK_N + c, call.value_width);
    }
    return packed(to);
  }
  Block packed(const R* at) const { return {at, nullptr, at + BLOCK_N * call.width, 0, E}; }
  // [few]
  // The same for few queries: 32 bits where they lie, 16 bits as a copy
  Block read(Int batch, Int g, Int block, R* values, R* rows) const {
    Int j = block * BLOCK_N, n = width_of(block);
    if (std::is_same_v<T, R> && D == call.width && E == call.value_width)
      return {nullptr, (R*)call.k.at<T>(batch, g, j), (R*)call.v.at<T>(batch, g, j), call.k.row,
          call.v.row};
    for (Int c = 0; c < n; c += W<R>) {
      Int few = std::min(W<R>, n - c);
      copy_rows(call.k.at<T>(batch, g, j + c), call.k.row, few, call.width, rows + c * D, D);
      copy_rows(
          call.v.at<T>(batch, g, j + c), call.v.row, few, call.value_width, values + c * E, E);
      fetch(call.k, batch, g, j + BLOCK_N + c, call.width);
    }
    return {nullptr, rows, values, D, E};
  }
  void dots(const Band& band, Int block, const R* q, const Block& keys, R* s) const {
    Int j = block * BLOCK_N, n = width_of(block), g = band.head / group;
    for (Int c = 0; c < n; c += W<R>)
      for (Int r = 0; r < band.rows; ++r) {
        if (r == 0) fetch(call.v, band.batch, g, j + BLOCK_N + c, call.value_width);
        V<R> part[W<R>] = {}, sum = {};
        for (Int i = 0; i < std::min(W<R>, n - c); ++i)
          for (Int d = 0; d < D; d += W<R>)
            part[i] += load(q + r * D + d) * load(keys.rows + (c + i) * keys.row + d);
        transpose<W<R> / 2, R>(part);
        for (auto& each : part) sum += each;
        store(s + r * BLOCK_N + c, sum);
      }
  }

  // [scores]
  // The scores of a tile, to base 2; false if nothing in it is seen
  bool scores(const Band& band, Int block, const R* q, const Block& keys, R* s) const {
    Int j = block * BLOCK_N, n = width_of(block);
    bool seen = !call.mask.data, edge = call.mask.data || call.bias.data || n % W<R>;
    for (Int r = 0; r < band.rows && !seen; ++r)
      seen = std::memchr(row<char>(call.mask, band, r) + j, 1, n);
    if (!seen) return false;
    if (!keys.columns) dots(band, block, q, keys, s);
    else
      product(band.rows, up(n, W<R>), call.width, q, D, 1, keys.columns, PANEL<R>,
          PANEL<R> * call.width, s, BLOCK_N, false);
    for (Int r = 0; r < band.rows; ++r) {
      Int from = std::clamp<Int>(first(band, r) - j, 0, n),
          to = std::clamp<Int>(end(band, r) - j, 0, n);
      if (!edge && from == 0 && to == n) continue;
      R* line = s + r * BLOCK_N;
      if (call.bias.data) {
        const R* bias = row<R>(call.bias, band, r) + j;
        for (Int c = 0; c < n; ++c) line[c] += LOG2_E * bias[c];
      }
      if (call.mask.data) {
        const char* mask = row<char>(call.mask, band, r) + j;
        for (Int c = 0; c < n; ++c) line[c] = mask[c] ? line[c] : -INF;
      }
      std::fill(line, line + from, -INF);
      std::fill(line + to, line + up(n, W<R>), -INF);
    }
    return true;
  }

  // [softmax]
  // Scores of up to W rows become weights, measured from the largest so far
  void softmax(R* s, Int rows, Int n, R* m, R* l, R* acc) const {
    V<R> part[W<R>], top = load(m);
    for (int r = 0; r < W<R>; ++r) part[r] = all(-INF);
    for (int r = 0; r < rows; ++r) {
      V<R> a = part[r], b = a;
      Int c = 0;
      for (; c + W<R> < n; c += 2 * W<R>)
        a = larger(a, load(s + r * BLOCK_N + c)), b = larger(b, load(s + r * BLOCK_N + c + W<R>));
      if (c < n) a = larger(a, load(s + r * BLOCK_N + c));
      part[r] = larger(a, b);
    }
    transpose<W<R> / 2, R>(part);
    for (auto& each : part) top = larger(each, top);
    V<R> base = top == -INF ? V<R>{} : top, alpha = exp2(load(m) - base), sum = {};
    for (auto& each : part) each = V<R>{};
    for (int r = 0; r < rows; ++r) {
      V<R> from = all(R(base[r])), sum = {};
      R* line = s + r * BLOCK_N;
      for (Int c = 0; c < n; c += W<R>) {
        V<R> weight = exp2(load(line + c) - from);
        sum += weight;
        store(line + c, weight);
      }
      part[r] = sum;
      if (alpha[r] != 1)
        for (Int c = r * E; c < (r + 1) * E; c += W<R>) store(acc + c, load(acc + c) * R(alpha[r]));
    }
    transpose<W<R> / 2, R>(part);
    for (auto& each : part) sum += each;
    store(l, load(l) * alpha + sum), store(m, top);
  }

  // [band]
  struct Desk {
    R *q, *s, *acc, *m, *l, *rows, *block;
  };  // what a thread needs for a band
  Int desk_size() const { return BLOCK_M * (D + BLOCK_N + E + 2) + BLOCK_N * D + unit(); }
  Desk desk(R* at) const {
    R *s = at + BLOCK_M * D, *acc = s + BLOCK_M * BLOCK_N, *m = acc + BLOCK_M * E;
    return {at, s, acc, m, m + BLOCK_M, m + 2 * BLOCK_M, m + 2 * BLOCK_M + BLOCK_N * D};
  }

  void forward_band(
      const Band& band, Int g, Int from, Int to, const R* ahead, const Desk& desk) const {
    for (Int r = 0; r < band.rows; ++r)
      copy_rows(
          row<T>(call.q, band, r), 0, 1, call.width, desk.q + r * D, 0, R(call.scale * LOG2_E));
    std::fill(desk.acc, desk.acc + BLOCK_M * E, 0), std::fill(desk.m, desk.m + BLOCK_M, -INF),
        std::fill(desk.l, desk.l + BLOCK_M, 0);
    for (Int block = from; block < to; ++block) {
      Block keys = ahead     ? packed(ahead + block * unit())
          : band.rows <= FEW ? read(band.batch, g, block, desk.block, desk.rows)
                             : pack(band.batch, g, block, desk.block, desk.rows);
      if (!scores(band, block, desk.q, keys, desk.s)) continue;
      Int n = width_of(block);
      for (Int r = 0; r < band.rows; r += W<R>)
        softmax(desk.s + r * BLOCK_N, std::min(W<R>, band.rows - r), up(n, W<R>), desk.m + r,
            desk.l + r, desk.acc + r * E);
      product(band.rows, E, n, desk.s, BLOCK_N, 1, keys.values, keys.value_row, PANEL<R>, desk.acc,
          E, true);
    }
  }
  void finish(const Band& band, const Desk& desk) const {
    for (Int r = 0; r < band.rows; ++r) {
      R l = desk.l[r];
      put(desk.acc + r * E, row<T>(call.context, band, r), call.value_width,
          desk.m[r] == -INF && l == 0 ? 0 : 1 / l);
      *row<R>(call.lse, band, r) = (desk.m[r] + std::log2(l)) * LN_2;
    }
  }
  static void put(const R* from, T* to, Int width, R factor) {
    for (Int c = 0; c < width; c += W<R>) {
      T line[W<R>];
      narrow(line, load(from + c) * factor);
      std::memcpy(to + c, line, std::min<Int>(W<R>, width - c) * sizeof(T));
    }
  }
  // [parts]
  // Another part of the same rows joins the first
  void merge(const Desk& a, const Desk& b, Int rows) const {
    for (Int r = 0; r < rows; ++r) {
      R top = std::max(a.m[r], b.m[r]), base = top == -INF ? 0 : top, x = std::exp2(a.m[r] - base),
        y = std::exp2(b.m[r] - base);
      a.m[r] = top, a.l[r] = x * a.l[r] + y * b.l[r];
      for (Int c = r * E; c < (r + 1) * E; c += W<R>)
        store(a.acc + c, load(a.acc + c) * x + load(b.acc + c) * y);
    }
  }

  // [forward]
  int forward() const {
    const Int all = call.batch * call.groups, many = 8 * call.threads;
    const bool ahead = bands > 1;
    const Int at_once = std::min(all, ahead ? up(many, bands) / bands : all);
    const Int splits =
        ahead ? 1 : std::clamp<Int>(many / std::max<Int>(all, 1), 1, std::max<Int>(blocks / 4, 1));
    const Int packed_size = ahead ? at_once * blocks * unit() : 0,
              desks = ahead || splits == 1 ? call.threads : all * splits;
    R* work = (R*)std::aligned_alloc(64, up((packed_size + desks * desk_size()) * sizeof(R), 64));
    if (!work) return 1;
    for (Int start = 0; start < all; start += at_once) {
      Int heads = std::min(at_once, all - start);
#pragma omp parallel num_threads(call.threads)
      {
        if (ahead) {
#pragma omp for schedule(static)
          for (Int n = 0; n < heads * blocks; ++n)
            pack((start + n / blocks) / call.groups, (start + n / blocks) % call.groups, n % blocks,
                work + n * unit(), desk(work + packed_size + thread() * desk_size()).rows);
        }
#pragma omp for schedule(dynamic, 1)
        for (Int n = 0; n < heads * bands * splits; ++n) {
          Int head = n % heads, part = n / heads, g = (start + head) % call.groups;
          Band rows = band((start + head) / call.groups, g, ahead ? bands - 1 - part : 0);
          auto [from, to] = visible(rows);
          Desk mine = desk(
              work + packed_size + (splits > 1 ? head * splits + part : thread()) * desk_size());
          Int count = to - from;
          if (splits > 1) to = from + count * (part + 1) / splits, from += count * part / splits;
          forward_band(rows, g, from, to, ahead ? work + head * blocks * unit() : nullptr, mine);
          if (splits == 1) finish(rows, mine);
        }
        if (splits > 1) {
#pragma omp for schedule(static)
          for (Int head = 0; head < heads; ++head) {
            Band rows = band((start + head) / call.groups, (start + head) % call.groups, 0);
            Desk sum = desk(work + packed_size + head * splits * desk_size());
            for (Int part = 1; part < splits; ++part)
              merge(
                  sum, desk(work + packed_size + (head * splits + part) * desk_size()), rows.rows);
            finish(rows, sum);
          }
        }
      }
    }
    std::free(work);
    return 0;
  }

  // [backward]
  // The gradients of a key head from some blocks of its keys: blocks part, part + parts, ...
  Int task_size() const {
    return bands * BLOCK_M * (2 * D + E + 2) +
        BLOCK_N * (call.width + call.value_width + 2 * D + E) + 2 * BLOCK_M * BLOCK_N;
  }
  void backward_part(Int batch, Int g, Int part, Int parts, R* q) const {
    R *dq = q + bands * BLOCK_M * D, *d_context = dq + bands * BLOCK_M * D,
      *lse = d_context + bands * BLOCK_M * E, *delta = lse + bands * BLOCK_M;
    R *columns = delta + bands * BLOCK_M, *values = columns + BLOCK_N * call.width,
      *keys = values + BLOCK_N * call.value_width;
    R *dk = keys + BLOCK_N * D, *dv = dk + BLOCK_N * D, *s = dv + BLOCK_N * E,
      *ds = s + BLOCK_M * BLOCK_N;
    std::fill(dq, d_context, 0);
    for (Int n = 0; n < bands; ++n) {
      Band rows = band(batch, g, n);
      for (Int r = 0, at = n * BLOCK_M; r < rows.rows; ++r, ++at) {
        copy_rows(row<T>(call.q, rows, r), 0, 1, call.width, q + at * D, 0, R(call.scale * LOG2_E));
        copy_rows(row<T>(call.d_context, rows, r), 0, 1, call.value_width, d_context + at * E, 0);
        copy_rows(row<T>(call.context, rows, r), 0, 1, call.value_width, s, 0);
        V<R> sum = {};
        for (Int c = 0; c < E; c += W<R>) sum += load(s + c) * load(d_context + at * E + c);
        delta[at] = total<R>(sum) - *row<R>(call.d_lse, rows, r);
        lse[at] = *row<R>(call.lse, rows, r) * LOG2_E;
        if (lse[at] == -INF) lse[at] = INF;  // of a row that sees nothing
      }
    }
    for (Int block = part; block < blocks; block += parts) {
      Int j = block * BLOCK_N, n = width_of(block);
      copy_rows(call.v.at<T>(batch, g, j), call.v.row, n, call.value_width, dv, E);
      copy_rows(call.k.at<T>(batch, g, j), call.k.row, n, call.width, keys, D);
      for (Int c = 0; c < n; c += W<R>) {
        pack_columns(dv + c * E, E, call.value_width, column(values, c, call.value_width));
        pack_columns(keys + c * D, D, call.width, column(columns, c, call.width));
      }
      std::fill(dk, s, 0);
      for (Int b = 0; b < bands; ++b) {
        Band rows = band(batch, g, b);
        auto [from, to] = visible(rows);
        if (block < from || block >= to ||
            !scores(rows, block, q + b * BLOCK_M * D, {columns, nullptr, nullptr, 0, 0}, s))
          continue;
        const R *my_q = q + b * BLOCK_M * D, *my_do = d_context + b * BLOCK_M * E;
        product(rows.rows, up(n, W<R>), call.value_width, my_do, E, 1, values, PANEL<R>,
            PANEL<R> * call.value_width, ds, BLOCK_N, false);
        for (Int r = 0; r < rows.rows; ++r) {
          V<R> top = all(lse[b * BLOCK_M + r]), mean = all(delta[b * BLOCK_M + r]);
          for (Int c = r * BLOCK_N; c < r * BLOCK_N + n; c += W<R>) {
            V<R> weight = exp2(load(s + c) - top);
            store(s + c, weight), store(ds + c, weight * (load(ds + c) - mean));
          }
          if (call.d_bias.data) std::copy_n(ds + r * BLOCK_N, n, row<R>(call.d_bias, rows, r) + j);
        }
        product(n, E, rows.rows, s, 1, BLOCK_N, my_do, E, PANEL<R>, dv, E, true);
        product(n, D, rows.rows, ds, 1, BLOCK_N, my_q, D, PANEL<R>, dk, D, true);
        product(rows.rows, D, n, ds, BLOCK_N, 1, keys, D, PANEL<R>, dq + b * BLOCK_M * D, D, true);
      }
      for (Int r = 0; r < n; ++r) {
        put(dk + r * D, call.dk.at<T>(batch, g, j + r), call.width, LN_2);
        put(dv + r * E, call.dv.at<T>(batch, g, j + r), call.value_width, 1);
      }
    }
  }
  // [sums]
  void finish_backward(Int batch, Int g, R* q, Int parts) const {
    R* dq = q + bands * BLOCK_M * D;
    for (Int part = 1; part < parts; ++part)
      for (Int n = 0; n < bands * BLOCK_M * D; n += W<R>)
        store(dq + n, load(dq + n) + load(dq + part * task_size() + n));
    for (Int n = 0; n < bands; ++n) {
      Band rows = band(batch, g, n);
      for (Int r = 0; r < rows.rows; ++r)
        put(dq + (n * BLOCK_M + r) * D, row<T>(call.dq, rows, r), call.width, call.scale);
    }
  }
  int backward() const {
    const Int all = call.batch * call.groups,
              parts = std::clamp<Int>(
                  2 * call.threads / std::max<Int>(all, 1), 1, std::max<Int>(blocks, 1));
    R* work = (R*)std::aligned_alloc(
        64, up((parts > 1 ? all * parts : call.threads) * task_size() * sizeof(R), 64));
    if (!work) return 1;
#pragma omp parallel num_threads(call.threads)
    {
#pragma omp for schedule(dynamic, 1)
      for (Int n = 0; n < all * parts; ++n) {
        Int head = n / parts, batch = head / call.groups, g = head % call.groups;
        R* mine = work + (parts > 1 ? n : thread()) * task_size();
        backward_part(batch, g, n % parts, parts, mine);
        if (parts == 1) finish_backward(batch, g, mine, 1);
      }
      if (parts > 1) {
#pragma omp for schedule(static)
        for (Int head = 0; head < all; ++head)
          finish_backward(
              head / call.groups, head % call.groups, work + head * parts * task_size(), parts);
      }
    }
    std::free(work);
    return 0;
  }
};

// [entry]
extern "C" int flash(const Call* call, int dtype, int backward) {
  auto run = [&](auto pass) { return backward ? pass.backward() : pass.forward(); };
  if (dtype == 0) return run(Pass<float>{*call});
  if (dtype == 1) return run(Pass<BFloat16>{*call});
  if (dtype == 2) return run(Pass<Half>{*call});
  return run(Pass<double>{*call});
}
