// The loops for one step of a map whose x, dt and B still have to be divided by the root mean square of x over the
// channels of their pixel. Included once per instruction set, after kernels.h.
//
// With r = 1 / rms(x), the update sees r x, r dt and r B; the gradient of r is summed over the channels of the pixel
// before that of x is complete, so a tile has all channels of its pixels and keeps what it needs in `scratch`.

template <typename State, typename Input, typename Compute>
struct NormalizedKernels {
  using Number = typename NumberOf<Compute>::type;

  // What one pixel, or one row of pixels of one channel, is made of.
  struct Row {
    const Input *x, *dt, *B;
    State *h0, *states;

    S6LA_INLINE Row(const Problem& p, int64_t batch, int64_t row)
        : x(pointer<Input>(p.x, batch, row)),
          dt(pointer<Input>(p.dt, batch, row)),
          B(pointer<Input>(p.B, batch, row)),
          h0(pointer<State>(p.h0, batch, row)),
          states(pointer<State>(p.states, batch, row)) {}
  };

  S6LA_INLINE static Number update_at(const Problem& p, const Row& in, const RowParameters<Number, Compute>& parameters,
                                      Number r, int64_t i, int count) {
    return update(load_lanes<Number>(in.h0 + i, count), load_lanes<Number>(in.x + i, count) * r,
                  load_lanes<Number>(in.dt + i, count) * r,
                  load_lanes<Number>(parameters.bias + i * parameters.stride, count),
                  load_lanes<Number>(parameters.A + i * parameters.stride, count),
                  load_lanes<Number>(in.B + i, count) * r, p.with_softplus, p.zoh);
  }

  // Writes the gradients of everything but x. Returns that of r x, which is the first part of x's, and adds to `by_r`.
  S6LA_INLINE static Number backward_at(const Problem& p, const MapGradients& out, const Row& in,
                                        const RowParameters<Number, Compute>& parameters, int64_t batch, int64_t row,
                                        Number r, int64_t i, int count, Number& by_r, Gradients<Number>& g) {
    const Number x = load_lanes<Number>(in.x + i, count), dt = load_lanes<Number>(in.dt + i, count);
    const Number B = load_lanes<Number>(in.B + i, count);
    g = update_backward(load_lanes<Number>(in.states + i, count), load_lanes<Number>(in.h0 + i, count), x * r, dt * r,
                        load_lanes<Number>(parameters.bias + i * parameters.stride, count),
                        load_lanes<Number>(parameters.A + i * parameters.stride, count), B * r, p.with_softplus, p.zoh);
    by_r = g.x * x + g.dt * dt + g.B * B;
    if (out.dt.data) store_lanes<Number>(pointer<Input>(out.dt, batch, row) + i, g.dt * r, count);
    if (out.B.data) store_lanes<Number>(pointer<Input>(out.B, batch, row) + i, g.B * r, count);
    if (out.h0.data) store_lanes<Number>(pointer<State>(out.h0, batch, row) + i, g.h, count);
    return g.x;
  }

  S6LA_INLINE static Compute reciprocal_rms(const Problem& p, Compute sum_of_squares, int64_t channels) {
    return 1 / std::sqrt(sum_of_squares / channels + static_cast<Compute>(p.norm_eps));
  }

  // Channels on the inner axis: a row is a pixel, r a number.

  // r of all pixels of a tile, ahead of the updates: neighbouring pixels do not wait for each other then.
  static void pixels_r(const Problem& p, const Tile& tile, Compute* r) {
    int64_t batch = tile.first_row / p.rows, row = tile.first_row % p.rows;
    for (int64_t n = tile.first_row; n < tile.last_row; ++n, next_row(p, batch, row)) {
      const Input* x = pointer<Input>(p.x, batch, row);
      Compute sum = 0;
      for_columns<Number>(0, p.inner, [&](int64_t i, int count) S6LA_LAMBDA {
        const Number v = load_lanes<Number>(x + i, count);
        sum += first_lanes_sum(v * v, count);
      });
      r[n - tile.first_row] = reciprocal_rms(p, sum, p.inner);
    }
  }

  static void forward_pixels(const Problem& p, const Tile& tile, Compute* scratch) {
    int64_t batch = tile.first_row / p.rows, row = tile.first_row % p.rows;
    const RowParameters<Number, Compute> parameters(p, 0);
    pixels_r(p, tile, scratch);
    for (int64_t n = tile.first_row; n < tile.last_row; ++n, next_row(p, batch, row)) {
      const Row in(p, batch, row);
      const Number r = constant<Number>(scratch[n - tile.first_row]);
      for_columns<Number>(0, p.inner, [&](int64_t i, int count) S6LA_LAMBDA {
        store_lanes<Number>(in.states + i, update_at(p, in, parameters, r, i, count), count);
      });
    }
  }

  // scratch: r of the tile's pixels, and the gradients of r x of one.
  static void backward_pixels(const Problem& p, const MapGradients& out, const Tile& tile, Compute* sum_A,
                              Compute* scratch) {
    int64_t batch = tile.first_row / p.rows, row = tile.first_row % p.rows;
    const RowParameters<Number, Compute> parameters(p, 0);
    pixels_r(p, tile, scratch);
    Compute* kept = scratch + (tile.last_row - tile.first_row);
    for (int64_t n = tile.first_row; n < tile.last_row; ++n, next_row(p, batch, row)) {
      const Row in(p, batch, row);
      const Compute r = scratch[n - tile.first_row];
      Compute sum_by_r = 0;
      for_columns<Number>(0, p.inner, [&](int64_t i, int count) S6LA_LAMBDA {
        Number by_r;
        Gradients<Number> g;
        const Number by_x = backward_at(p, out, in, parameters, batch, row, constant<Number>(r), i, count, by_r, g);
        sum_by_r += first_lanes_sum(by_r, count);
        if (out.x.data) store_lanes<Number>(kept + i, by_x, count);
        if (sum_A == nullptr) return;
        add_lanes<Number>(sum_A + i, g.A, count);
        add_lanes<Number>(sum_A + p.inner + i, g.dt, count);
      });
      if (!out.x.data) continue;
      const Number factor = constant<Number>(-sum_by_r * r * r * r / p.inner), number_r = constant<Number>(r);
      for_columns<Number>(0, p.inner, [&](int64_t i, int count) S6LA_LAMBDA {
        const Number by_x = load_lanes<Number>(kept + i, count) * number_r;
        store_lanes<Number>(pointer<Input>(out.x, batch, row) + i, by_x + load_lanes<Number>(in.x + i, count) * factor,
                            count);
      });
    }
  }

  // Pixels on the inner axis: a row is a channel, r a vector. A tile is some columns of all rows of one batch.

  S6LA_INLINE static void column_r(const Problem& p, const Tile& tile, int64_t batch, Compute* r) {
    const int64_t columns = tile.last - tile.first;
    std::fill(r, r + columns, Compute(0));
    for (int64_t row = 0; row < p.rows; ++row) {
      const Input* x = pointer<Input>(p.x, batch, row) + tile.first;
      for_columns<Number>(0, columns, [&](int64_t i, int count) S6LA_LAMBDA {
        const Number v = load_lanes<Number>(x + i, count);
        add_lanes<Number>(r + i, v * v, count);
      });
    }
    for (int64_t i = 0; i < columns; ++i) r[i] = reciprocal_rms(p, r[i], p.rows);
  }

  static void forward_columns(const Problem& p, const Tile& tile, Compute* scratch) {
    const int64_t batch = tile.first_row / p.rows;
    column_r(p, tile, batch, scratch);
    for (int64_t row = 0; row < p.rows; ++row) {
      const Row in(p, batch, row);
      const RowParameters<Number, Compute> parameters(p, row);
      for_columns<Number>(tile.first, tile.last, [&](int64_t i, int count) S6LA_LAMBDA {
        const Number r = load_lanes<Number>(scratch + i - tile.first, count);
        store_lanes<Number>(in.states + i, update_at(p, in, parameters, r, i, count), count);
      });
    }
  }

  // scratch: r, the sums of its gradient, and the gradients of r x.
  static void backward_columns(const Problem& p, const MapGradients& out, const Tile& tile, Compute* sum_A,
                               Compute* scratch) {
    const int64_t batch = tile.first_row / p.rows, columns = tile.last - tile.first;
    Compute *r = scratch, *by_r = r + columns, *by_x = by_r + columns;
    column_r(p, tile, batch, r);
    std::fill(by_r, by_r + columns, Compute(0));
    for (int64_t row = 0; row < p.rows; ++row) {
      const Row in(p, batch, row);
      const RowParameters<Number, Compute> parameters(p, row);
      Number row_A = constant<Number>(0), row_bias = constant<Number>(0);
      double rest_A = 0, rest_bias = 0;
      for_columns<Number>(tile.first, tile.last, [&](int64_t i, int count) S6LA_LAMBDA {
        const int64_t column = i - tile.first;
        Number block_by_r;
        Gradients<Number> g;
        const Number block_by_x = backward_at(p, out, in, parameters, batch, row, load_lanes<Number>(r + column, count),
                                              i, count, block_by_r, g);
        add_lanes<Number>(by_r + column, block_by_r, count);
        if (out.x.data) store_lanes<Number>(by_x + row * columns + column, block_by_x, count);
        if (count == kLanes<Number>) {
          row_A = row_A + g.A;
          row_bias = row_bias + g.dt;
        } else {
          rest_A += lane_sum(g.A, count);
          rest_bias += lane_sum(g.dt, count);
        }
      });
      if (sum_A == nullptr) continue;
      sum_A[row] = lane_sum(row_A, kLanes<Number>) + rest_A;
      sum_A[p.rows + row] = lane_sum(row_bias, kLanes<Number>) + rest_bias;
    }
    if (!out.x.data) return;
    for (int64_t i = 0; i < columns; ++i) by_r[i] *= -r[i] * r[i] * r[i] / p.rows;
    for (int64_t row = 0; row < p.rows; ++row) {
      const Input* x = pointer<Input>(p.x, batch, row) + tile.first;
      Input* grad_x = pointer<Input>(out.x, batch, row) + tile.first;
      for_columns<Number>(0, columns, [&](int64_t i, int count) S6LA_LAMBDA {
        const Number scaled = load_lanes<Number>(by_x + row * columns + i, count) * load_lanes<Number>(r + i, count);
        store_lanes<Number>(grad_x + i, scaled + load_lanes<Number>(x + i, count) * load_lanes<Number>(by_r + i, count),
                            count);
      });
    }
  }

  static void forward(const Problem& p, const MapTiling& tiling, int64_t first_tile, int64_t last_tile) {
    std::vector<Compute> scratch(tiling.scratch);
    for (int64_t index = first_tile; index < last_tile; ++index) {
      const Tile tile = tile_of(tiling, p, index);
      p.channels_inner ? forward_pixels(p, tile, scratch.data()) : forward_columns(p, tile, scratch.data());
    }
  }

  static void backward(const Problem& p, const MapGradients& out, const MapTiling& tiling, int64_t first_tile,
                       int64_t last_tile) {
    std::vector<Compute> scratch(tiling.scratch);
    for (int64_t index = first_tile; index < last_tile; ++index) {
      const Tile tile = tile_of(tiling, p, index);
      Compute* sum_A = out.sums ? static_cast<Compute*>(out.sums) + 2 * tiling.sums_per_tile * index : nullptr;
      p.channels_inner ? backward_pixels(p, out, tile, sum_A, scratch.data())
                       : backward_columns(p, out, tile, sum_A, scratch.data());
    }
  }
};
