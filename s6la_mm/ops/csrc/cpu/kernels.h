// The loops of the CPU kernels. Included once per instruction set, after update.h and vector.h.
//
// Work is cut into tiles whose size does not depend on the number of threads, and every tile writes its own partial
// sums, which the caller adds up in their order: one thread or many, the result is the same to the last bit.

// What a tile of the map layout covers: rows [first_row, last_row) of all batches, columns [first, last).
struct Tile {
  int64_t first_row, last_row, first, last;
};

S6LA_INLINE Tile tile_of(const MapTiling& tiling, const Problem& p, int64_t index) {
  const int64_t rows = p.batches * p.rows;
  const int64_t row = index / tiling.inner_tiles * tiling.rows;
  const int64_t column = index % tiling.inner_tiles * tiling.inner;
  return {row, std::min(row + tiling.rows, rows), column, std::min(column + tiling.inner, p.inner)};
}

S6LA_INLINE void next_row(const Problem& p, int64_t& batch, int64_t& row) {
  if (++row == p.rows) {
    row = 0;
    ++batch;
  }
}

template <typename Scalar>
S6LA_INLINE Scalar* pointer(const Operand& o, int64_t batch, int64_t row) {
  return static_cast<Scalar*>(o.data) + batch * o.batch + row * o.row;
}

// A and the bias of a row, to be read with load_lanes at any column: where they run along the rows, each is repeated in
// as many lanes as a load takes.
template <typename Number, typename Compute>
struct RowParameters {
  Compute repeated_A[kLanes<Number>], repeated_bias[kLanes<Number>];
  const Compute *A, *bias;
  int64_t stride;

  S6LA_INLINE RowParameters(const Problem& p, int64_t row) {
    A = static_cast<const Compute*>(p.A);
    bias = static_cast<const Compute*>(p.bias);
    stride = p.channels_inner;
    if (p.channels_inner) return;
    std::fill(repeated_A, repeated_A + kLanes<Number>, A[row]);
    std::fill(repeated_bias, repeated_bias + kLanes<Number>, bias[row]);
    A = repeated_A;
    bias = repeated_bias;
  }
};

// Calls block(i, lanes) over columns [first, last), where `lanes` is a constant except in the last call.
template <typename Number, typename Block>
S6LA_INLINE void for_columns(int64_t first, int64_t last, Block block) {
  int64_t i = first;
  for (; i + kLanes<Number> <= last; i += kLanes<Number>) block(i, kLanes<Number>);
  if (i < last) block(i, static_cast<int>(last - i));
}

template <typename State, typename Input, typename Compute>
struct Kernels {
  using Number = typename NumberOf<Compute>::type;

  static void map_forward(const Problem& p, const MapTiling& tiling, int64_t first_tile, int64_t last_tile) {
    for (int64_t index = first_tile; index < last_tile; ++index) {
      const Tile tile = tile_of(tiling, p, index);
      int64_t batch = tile.first_row / p.rows, row = tile.first_row % p.rows;
      for (int64_t r = tile.first_row; r < tile.last_row; ++r, next_row(p, batch, row)) {
        const Input* x = pointer<Input>(p.x, batch, row);
        const Input* dt = pointer<Input>(p.dt, batch, row);
        const Input* B = pointer<Input>(p.B, batch, row);
        const State* h0 = pointer<State>(p.h0, batch, row);
        State* states = pointer<State>(p.states, batch, row);
        const RowParameters<Number, Compute> parameters(p, row);
        for_columns<Number>(tile.first, tile.last, [&](int64_t i, int count) S6LA_LAMBDA {
          const Number last = scan(
              p.steps, load_lanes<Number>(h0 + i, count),
              load_lanes<Number>(parameters.A + i * parameters.stride, count),
              load_lanes<Number>(parameters.bias + i * parameters.stride, count), p.with_softplus, p.zoh,
              [&](int64_t t, Number& x_t, Number& dt_t, Number& B_t) S6LA_LAMBDA {
                x_t = load_lanes<Number>(x + t * p.x.step + i, count);
                dt_t = load_lanes<Number>(dt + t * p.dt.step + i, count);
                B_t = load_lanes<Number>(B + t * p.B.step + i, count);
              },
              [&](int64_t t, Number h) S6LA_LAMBDA {
                if (p.all_states) store_lanes<Number>(states + t * p.states.step + i, h, count);
              });
          if (!p.all_states) store_lanes<Number>(states + i, last, count);
        });
      }
    }
  }

  // `sums` has a row per tile for A and one for the bias: of tiling.rows sums (of the tile's rows), or of p.inner
  // sums where the channels are the inner axis.
  static void map_backward(const Problem& p, const MapGradients& out, const MapTiling& tiling, int64_t first_tile,
                           int64_t last_tile) {
    const int64_t width = tiling.sums_per_tile;
    for (int64_t index = first_tile; index < last_tile; ++index) {
      const Tile tile = tile_of(tiling, p, index);
      Compute* sum_A = out.sums ? static_cast<Compute*>(out.sums) + 2 * width * index : nullptr;
      int64_t batch = tile.first_row / p.rows, row = tile.first_row % p.rows;
      for (int64_t r = tile.first_row; r < tile.last_row; ++r, next_row(p, batch, row)) {
        const Input* x = pointer<Input>(p.x, batch, row);
        const Input* dt = pointer<Input>(p.dt, batch, row);
        const Input* B = pointer<Input>(p.B, batch, row);
        const State* h0 = pointer<State>(p.h0, batch, row);
        const State* incoming = pointer<State>(p.states, batch, row);
        const RowParameters<Number, Compute> parameters(p, row);
        Number row_A = constant<Number>(0), row_bias = constant<Number>(0);
        double rest_A = 0, rest_bias = 0;
        for_columns<Number>(tile.first, tile.last, [&](int64_t i, int count) S6LA_LAMBDA {
          Number block_A = constant<Number>(0), block_bias = constant<Number>(0);
          const Number last = p.all_states ? constant<Number>(0) : load_lanes<Number>(incoming + i, count);
          const Number grad_h0 = scan_backward(
              p.steps, load_lanes<Number>(h0 + i, count), last,
              load_lanes<Number>(parameters.A + i * parameters.stride, count),
              load_lanes<Number>(parameters.bias + i * parameters.stride, count), p.with_softplus, p.zoh,
              [&](int64_t t, Number& x_t, Number& dt_t, Number& B_t) S6LA_LAMBDA {
                x_t = load_lanes<Number>(x + t * p.x.step + i, count);
                dt_t = load_lanes<Number>(dt + t * p.dt.step + i, count);
                B_t = load_lanes<Number>(B + t * p.B.step + i, count);
              },
              [&](int64_t t, Number& grad) S6LA_LAMBDA {
                if (p.all_states) grad = grad + load_lanes<Number>(incoming + t * p.states.step + i, count);
              },
              [&](int64_t t, const Gradients<Number>& g) S6LA_LAMBDA {
                if (out.x.data) {
                  store_lanes<Number>(pointer<Input>(out.x, batch, row) + t * out.x.step + i, g.x, count);
                }
                if (out.dt.data) {
                  store_lanes<Number>(pointer<Input>(out.dt, batch, row) + t * out.dt.step + i, g.dt, count);
                }
                if (out.B.data) {
                  store_lanes<Number>(pointer<Input>(out.B, batch, row) + t * out.B.step + i, g.B, count);
                }
                block_A = block_A + g.A;
                block_bias = block_bias + g.dt;
              });
          if (out.h0.data) store_lanes<Number>(pointer<State>(out.h0, batch, row) + i, grad_h0, count);
          if (sum_A == nullptr) return;
          if (p.channels_inner) {
            add_lanes(sum_A + i, block_A, count);
            add_lanes(sum_A + width + i, block_bias, count);
          } else if (count == kLanes<Number>) {
            row_A = row_A + block_A;
            row_bias = row_bias + block_bias;
          } else {
            rest_A += lane_sum(block_A, count);
            rest_bias += lane_sum(block_bias, count);
          }
        });
        if (sum_A != nullptr && !p.channels_inner) {
          sum_A[r - tile.first_row] = lane_sum(row_A, kLanes<Number>) + rest_A;
          sum_A[width + r - tile.first_row] = lane_sum(row_bias, kLanes<Number>) + rest_bias;
        }
      }
    }
  }

  static void token_forward(const Problem& p, int64_t first_row, int64_t last_row) {
    int64_t batch = first_row / p.rows, row = first_row % p.rows;
    for (int64_t r = first_row; r < last_row; ++r, next_row(p, batch, row)) {
      const Compute* A = static_cast<const Compute*>(p.A) + row * p.inner;
      const Number bias = constant<Number>(static_cast<const Compute*>(p.bias)[row]);
      const Input* x = pointer<Input>(p.x, batch, row);
      const Input* dt = pointer<Input>(p.dt, batch, row);
      const Input* B = pointer<Input>(p.B, batch, 0);
      const State* h0 = pointer<State>(p.h0, batch, row);
      State* states = pointer<State>(p.states, batch, row);
      for_columns<Number>(0, p.inner, [&](int64_t i, int count) S6LA_LAMBDA {
        const Number last = scan(
            p.steps, load_lanes<Number>(h0 + i, count), load_lanes<Number>(A + i, count), bias, p.with_softplus, p.zoh,
            [&](int64_t t, Number& x_t, Number& dt_t, Number& B_t) S6LA_LAMBDA {
              x_t = constant<Number>(static_cast<Compute>(x[t * p.x.step]));
              dt_t = constant<Number>(static_cast<Compute>(dt[t * p.dt.step]));
              B_t = load_lanes<Number>(B + t * p.B.step + i, count);
            },
            [&](int64_t t, Number h) S6LA_LAMBDA {
              if (p.all_states) store_lanes<Number>(states + t * p.states.step + i, h, count);
            });
        if (!p.all_states) store_lanes<Number>(states + i, last, count);
      });
    }
  }

  // One tile is kTokenChannels channels of all batches, so that it owns the sums over the batches for A and the bias;
  // the sums for B over the channels are per tile. `scratch` holds 2 * steps doubles.
  static void token_backward(const Problem& p, const TokenGradients& out, int64_t tile, double* scratch) {
    const int64_t last_row = std::min((tile + 1) * kTokenChannels, p.rows);
    Compute* sum_B = static_cast<Compute*>(out.sums_B) + tile * p.steps * p.batches * p.inner;
    for (int64_t row = tile * kTokenChannels; row < last_row; ++row) {
      const Compute* A = static_cast<const Compute*>(p.A) + row * p.inner;
      const Number bias = constant<Number>(static_cast<const Compute*>(p.bias)[row]);
      Compute* sum_A = static_cast<Compute*>(out.sums_A) + row * p.inner;
      double sum_bias = 0;
      for (int64_t batch = 0; batch < p.batches; ++batch) {
        const Input* x = pointer<Input>(p.x, batch, row);
        const Input* dt = pointer<Input>(p.dt, batch, row);
        const Input* B = pointer<Input>(p.B, batch, 0);
        const State* h0 = pointer<State>(p.h0, batch, row);
        const State* incoming = pointer<State>(p.states, batch, row);
        std::fill(scratch, scratch + 2 * p.steps, 0.0);
        for_columns<Number>(0, p.inner, [&](int64_t i, int count) S6LA_LAMBDA {
          Number block_A = constant<Number>(0);
          const Number last = p.all_states ? constant<Number>(0) : load_lanes<Number>(incoming + i, count);
          const Number grad_h0 = scan_backward(
              p.steps, load_lanes<Number>(h0 + i, count), last, load_lanes<Number>(A + i, count), bias, p.with_softplus,
              p.zoh,
              [&](int64_t t, Number& x_t, Number& dt_t, Number& B_t) S6LA_LAMBDA {
                x_t = constant<Number>(static_cast<Compute>(x[t * p.x.step]));
                dt_t = constant<Number>(static_cast<Compute>(dt[t * p.dt.step]));
                B_t = load_lanes<Number>(B + t * p.B.step + i, count);
              },
              [&](int64_t t, Number& grad) S6LA_LAMBDA {
                if (p.all_states) grad = grad + load_lanes<Number>(incoming + t * p.states.step + i, count);
              },
              [&](int64_t t, const Gradients<Number>& g) S6LA_LAMBDA {
                scratch[t] += lane_sum(g.x, count);
                scratch[p.steps + t] += lane_sum(g.dt, count);
                add_lanes(sum_B + (t * p.batches + batch) * p.inner + i, g.B, count);
                block_A = block_A + g.A;
              });
          if (out.h0.data) store_lanes<Number>(pointer<State>(out.h0, batch, row) + i, grad_h0, count);
          add_lanes(sum_A + i, block_A, count);
        });
        for (int64_t t = 0; t < p.steps; ++t) {
          if (out.x.data) pointer<Input>(out.x, batch, row)[t * out.x.step] = static_cast<Input>(scratch[t]);
          if (out.dt.data) {
            pointer<Input>(out.dt, batch, row)[t * out.dt.step] = static_cast<Input>(scratch[p.steps + t]);
          }
          sum_bias += scratch[p.steps + t];
        }
      }
      static_cast<Compute*>(out.sums_bias)[row] = sum_bias;
    }
  }
};
