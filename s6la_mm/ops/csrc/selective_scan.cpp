// The operators: their checks, the form that kernels want, allocation, dispatch by device, registration.
//
// Device implementations are found through mmcv's registry, as mmcv's own ops are; on top, the operators are registered
// with torch.library, whose fake kernels, autograd and autocast rules are in ../library.py.
#include "selective_scan.h"

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>
#include <torch/library.h>
#include <torch/version.h>
#ifdef MMCV_WITH_CUDA
#include <cuda.h>
#endif

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"

using s6la::OptionalTensor;

void selective_scan_forward_impl(Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, s6la::Options options,
                                 Tensor states) {
  DISPATCH_DEVICE_IMPL(selective_scan_forward_impl, h0, x, dt, A, B, bias, options, states);
}

void selective_scan_backward_impl(Tensor grad, Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias,
                                  s6la::Options options, s6la::Results results) {
  DISPATCH_DEVICE_IMPL(selective_scan_backward_impl, grad, h0, x, dt, A, B, bias, options, results);
}

namespace s6la {
namespace {

using Shape = std::vector<int64_t>;
using Argument = std::pair<const char*, const Tensor*>;

std::string text(at::IntArrayRef shape) {
  std::string result = "(";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + (shape.size() == 1 ? ",)" : ")");
}

void check_shape(const char* name, const Tensor& tensor, const Shape& expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(expected), name, " must have shape ", text(expected), ", got ",
                    text(tensor.sizes()));
}

// The layout table of the public functions (selective_scan.py, which says the same for the fake kernels).
void check(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& h0,
           const OptionalTensor& bias, c10::optional<double> norm_eps, const Tensor* grad, bool all_states) {
  std::vector<Argument> tensors = {{"h0", &h0}, {"x", &x}, {"dt", &dt}, {"A", &A}, {"B", &B}};
  if (bias.has_value()) tensors.emplace_back("dt_bias", &*bias);
  if (grad != nullptr) tensors.emplace_back("grad", grad);
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_TYPE(tensor->defined() && at::isFloatingType(tensor->scalar_type()) && tensor->element_size() >= 2 &&
                         tensor->layout() == at::kStrided,
                     name, " must be a dense tensor of float64, float32, float16 or bfloat16, got ",
                     tensor->defined() ? tensor->toString() : "an undefined tensor");
    TORCH_CHECK_VALUE(tensor->device() == h0.device(), name, " is on ", tensor->device(), ", but the state is on ",
                      h0.device(), ": move it there");
  }
  TORCH_CHECK_VALUE(A.dim() == 1 || A.dim() == 2, "A must be (N,) for maps or (D, N) for tokens, got shape ",
                    text(A.sizes()));
  TORCH_CHECK_VALUE(x.dim() > 0, "x must have a leading depth axis, got shape ()");
  const int64_t steps = x.size(0);
  Shape like_x, like_B, like_h0 = h0.sizes().vec();
  if (A.dim() == 2) {
    TORCH_CHECK_VALUE(h0.dim() == 3 && h0.sizes().slice(1) == A.sizes(), "h0 must be (batch, ", A.size(0), ", ",
                      A.size(1), ") to fit A, got ", text(h0.sizes()));
    like_x = {steps, h0.size(0), h0.size(1)};
    like_B = {steps, h0.size(0), h0.size(2)};
  } else {
    TORCH_CHECK_VALUE(h0.dim() >= 2 && h0.size(1) == A.size(0), "h0 must be (batch, ", A.size(0),
                      ", *space) to fit A, got ", text(h0.sizes()));
    like_x = like_h0;
    like_x.insert(like_x.begin(), steps);
    like_B = like_x;
  }
  check_shape("x", x, like_x);
  check_shape("dt", dt, like_x);
  check_shape("B", B, like_B);
  if (bias.has_value()) check_shape("dt_bias", *bias, {A.size(0)});
  TORCH_CHECK_VALUE(!norm_eps.has_value() || (A.dim() == 1 && steps == 1),
                    "norm_eps needs one step of the map layout, got ", steps, " steps and A of shape ",
                    text(A.sizes()));
  if (grad == nullptr) return;
  Shape like_states = like_h0;
  if (all_states) like_states.insert(like_states.begin(), steps);
  check_shape("grad", *grad, like_states);
}

// The arguments as the kernels take them: cast to storage types they know, maps as (…, rows, inner) with unit stride on
// the inner axis. Nothing is copied where type and strides fit.
struct Arguments {
  Tensor h0, x, dt, A, B, bias;  // bias: zeros where there is none
  bool token, channels_inner;
  at::ScalarType state_type, input_type;
  Shape space;

  Arguments(const Tensor& h0_, const Tensor& x_, const Tensor& dt_, const Tensor& A_, const Tensor& B_,
            const OptionalTensor& bias_) {
    token = A_.dim() == 2;
    channels_inner = !token && x_.size(2) > 1 && x_.stride(2) == 1;
    if (!token) space = x_.sizes().slice(3).vec();
    bool any_double = bias_.has_value() && bias_->scalar_type() == at::kDouble;
    for (const Tensor* t : {&h0_, &x_, &dt_, &A_, &B_}) any_double |= t->scalar_type() == at::kDouble;
    const at::ScalarType compute = any_double ? at::kDouble : at::kFloat;
    // Inputs of one half type stay as they are, beside a state of that type or of float32.
    input_type = x_.scalar_type();
    const bool one_type = dt_.scalar_type() == input_type && B_.scalar_type() == input_type;
    const bool fits = h0_.scalar_type() == at::kFloat || h0_.scalar_type() == input_type;
    if (any_double || !one_type || !fits) input_type = compute;
    state_type = input_type == compute ? compute : h0_.scalar_type();
    h0 = kernel_form(h0_, state_type, 0);
    x = kernel_form(x_, input_type, 1);
    dt = kernel_form(dt_, input_type, 1);
    B = kernel_form(B_, input_type, 1);
    A = A_.to(compute).contiguous();
    bias = bias_.has_value() ? bias_->to(compute).contiguous() : at::zeros(A.size(0), A.options());
  }

  Options options(bool with_softplus, bool zoh, bool all_states, c10::optional<double> norm_eps) const {
    return {channels_inner, with_softplus, zoh, all_states, norm_eps.has_value(), norm_eps.value_or(0)};
  }

  // `leading` axes (depth, or none) come before the batch.
  Tensor kernel_form(const Tensor& tensor, at::ScalarType type, int64_t leading) const {
    Tensor t = tensor.to(type);
    if (!token) {
      const int64_t channel = leading + 1;
      if (t.dim() == channel + 1) t = t.unsqueeze(-1);
      t = channels_inner ? t.movedim(channel, -1).flatten(channel, -2) : t.flatten(channel + 1, -1);
    }
    return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
  }

  // From kernel form back to the public shape.
  Tensor public_form(const Tensor& t, int64_t leading) const {
    if (token) return t;
    const int64_t channel = leading + 1;
    Shape sizes = t.sizes().slice(0, channel).vec();
    if (!channels_inner) {
      sizes.push_back(t.size(channel));
      sizes.insert(sizes.end(), space.begin(), space.end());
      return t.view(sizes);
    }
    sizes.insert(sizes.end(), space.begin(), space.end());
    sizes.push_back(t.size(-1));
    return t.view(sizes).movedim(-1, channel);
  }
};

Tensor selective_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& h0,
                      const OptionalTensor& dt_bias, bool dt_softplus, bool zoh, bool return_states,
                      c10::optional<double> norm_eps) {
  check(x, dt, A, B, h0, dt_bias, norm_eps, nullptr, return_states);
  const Arguments args(h0, x, dt, A, B, dt_bias);
  Shape sizes = args.h0.sizes().vec();
  if (return_states) sizes.insert(sizes.begin(), x.size(0));
  Tensor states = at::empty(sizes, args.h0.options());
  if (states.numel() > 0) {
    selective_scan_forward_impl(args.h0, args.x, args.dt, args.A, args.B, args.bias,
                                args.options(dt_softplus, zoh, return_states, norm_eps), states);
  }
  return args.public_form(states, return_states ? 1 : 0).to(h0.scalar_type());
}

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients for x, dt, A, B, h0 and dt_bias; empty where `mask` is false.
SixTensors selective_scan_backward(const Tensor& grad, const Tensor& x, const Tensor& dt, const Tensor& A,
                                   const Tensor& B, const Tensor& h0, const OptionalTensor& dt_bias, bool dt_softplus,
                                   bool zoh, bool return_states, c10::optional<double> norm_eps,
                                   std::array<bool, 6> mask) {
  check(x, dt, A, B, h0, dt_bias, norm_eps, &grad, return_states);
  TORCH_CHECK_VALUE(!mask[5] || dt_bias.has_value(), "output_mask asks for the gradient of dt_bias, which is None");
  const Arguments args(h0, x, dt, A, B, dt_bias);
  const auto result_if = [](bool wanted, const Tensor& like) {
    return wanted ? OptionalTensor(at::empty(like.sizes(), like.options())) : OptionalTensor();
  };
  const Results results{result_if(mask[0], args.x), result_if(mask[1], args.dt), result_if(mask[2], args.A),
                        result_if(mask[3], args.B), result_if(mask[4], args.h0), result_if(mask[5], args.bias)};
  if (h0.numel() > 0) {
    selective_scan_backward_impl(args.kernel_form(grad, args.state_type, return_states ? 1 : 0), args.h0, args.x,
                                 args.dt, args.A, args.B, args.bias,
                                 args.options(dt_softplus, zoh, return_states, norm_eps), results);
  } else {
    for (const OptionalTensor* result : {&results.x, &results.dt, &results.A, &results.B, &results.bias}) {
      if (result->has_value()) (*result)->zero_();
    }
  }
  const auto finish = [&](const OptionalTensor& result, const Tensor& like, int64_t leading, bool map_form) {
    if (!result.has_value()) return at::empty({0}, like.options());
    return (map_form ? args.public_form(*result, leading) : *result).to(like.scalar_type());
  };
  return {finish(results.x, x, 1, true),   finish(results.dt, dt, 1, true),
          finish(results.A, A, 0, false),  finish(results.B, B, 1, true),
          finish(results.h0, h0, 0, true), finish(results.bias, dt_bias.has_value() ? *dt_bias : A, 0, false)};
}

// torch.compile may trace the operators. Before 2.2 torch does not ask, and knows no such tag.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 2
#define S6LA_TAGS at::Tag::pt2_compliant_tag
#else
#define S6LA_TAGS
#endif

#define S6LA_STRING_OF(value) #value
#define S6LA_STRING(value) S6LA_STRING_OF(value)

// What this module was compiled from and for, as JSON.
std::string build_info() {
  const std::string major = S6LA_STRING(TORCH_VERSION_MAJOR), minor = S6LA_STRING(TORCH_VERSION_MINOR);
  std::string info = "{\"torch\": \"" + major + "." + minor + "." S6LA_STRING(TORCH_VERSION_PATCH);
  info += "\", \"compiler\": \"";
#if defined(__clang__)
  info += "Clang " S6LA_STRING(__clang_major__) "." S6LA_STRING(__clang_minor__);
#elif defined(__GNUC__)
  info += "GCC " S6LA_STRING(__GNUC__) "." S6LA_STRING(__GNUC_MINOR__);
#endif
  info += "\", \"cpu_capability\": \"" + at::get_cpu_capability() + "\", \"cuda\": ";
#ifdef MMCV_WITH_CUDA
  info += "\"" + std::to_string(CUDA_VERSION / 1000) + "." + std::to_string(CUDA_VERSION % 1000 / 10) + "\"";
  info += ", \"cuda_archs\": \"" S6LA_CUDA_ARCHS "\"}";
#else
  info += "null, \"cuda_archs\": \"\"}";
#endif
  return info;
}

}  // namespace
}  // namespace s6la

TORCH_LIBRARY(s6la_mm, m) {
  m.def(
      "selective_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor h0, Tensor? dt_bias, bool dt_softplus, bool zoh, "
      "bool return_states, float? norm_eps) -> Tensor",
      {S6LA_TAGS});
  m.def(
      "selective_scan_backward(Tensor grad, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor h0, Tensor? dt_bias, "
      "bool dt_softplus, bool zoh, bool return_states, float? norm_eps, bool[6] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      {S6LA_TAGS});
  m.def("build_info() -> str", &s6la::build_info);
}

TORCH_LIBRARY_IMPL(s6la_mm, CPU, m) {
  m.impl("selective_scan", &s6la::selective_scan);
  m.impl("selective_scan_backward", &s6la::selective_scan_backward);
}

#ifdef MMCV_WITH_CUDA
TORCH_LIBRARY_IMPL(s6la_mm, CUDA, m) {
  m.impl("selective_scan", &s6la::selective_scan);
  m.impl("selective_scan_backward", &s6la::selective_scan_backward);
}
#endif

// Importing the module loads the library, and with it the registrations above; there is nothing else in it.
extern "C" PyObject* PyInit__ext() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
