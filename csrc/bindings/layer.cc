#include "bindings/layer.h"

#include <cmath>

namespace se {
namespace {

constexpr int64_t kMostFeatures = 1 << 20;

Activation parse_activation(const std::string& name) {
#define SE_ACTIVATION(enumerator) \
  if (name == #enumerator) return Activation::enumerator;
  SE_ACTIVATIONS
#undef SE_ACTIVATION
  throw std::invalid_argument("unknown activation " + name);
}

LayerLinear view_of(const Shared<BoundLinear>& linear) {
  return linear ? linear->view() : LayerLinear{};
}

bool has_shape(const Shared<BoundLinear>& linear, int64_t out, int64_t in) {
  return linear->out() == out && linear->in() == in;
}

const Norm* view_of(const Shared<BoundNorm>& norm, int64_t features) {
  if (!norm) return nullptr;
  require(norm->fits(features), "layer: a norm has the wrong size");
  return norm->view();
}

}  // namespace

BoundLinear::BoundLinear(const py::object& panels, const py::object& rows,
                         std::optional<Floats> bias)
    : panels_(panels), rows_(rows), bias_(std::move(bias)) {
  view_.panels = weight(panels, true);
  view_.rows = weight(rows, false);
  require(static_cast<bool>(view_), "linear: give a weight for panels or for rows");
  require(!bias_ || (bias_->ndim() == 1 && bias_->size() == out_),
          "linear: a bias has the wrong size");
  view_.bias = bias_ ? bias_->data() : nullptr;
}

const PackedWeight* BoundLinear::weight(const py::object& given, bool panels) {
  if (given.is_none()) return nullptr;
  const Weight& w = given.cast<const Weight&>();
  require(out_ == 0 || (out_ == w.out() && in_ == w.in()),
          "linear: the weights for panels and for rows must have the same shape");
  out_ = w.out();
  in_ = w.in();
  const bool runs = std::holds_alternative<Runs>(w.view());
  const Tiles* tiles = std::get_if<Tiles>(&w.view());
  const bool columns = std::holds_alternative<Columns>(w.view());
  const bool fits = runs || columns || std::holds_alternative<Strips>(w.view()) ||
                    (tiles && tiles->dtype != DType::f32);
  require(panels ? fits : !runs && !columns,
          panels ? "linear: a weight for panels must be packed as runs, "
                   "strips, columns, or tiles of bfloat16 or int8"
                 : "linear: a weight for rows must not be packed as runs or columns");
  return &w.view();
}

BoundNorm::BoundNorm(std::optional<Floats> gamma, std::optional<Floats> beta, float epsilon,
                     bool rms)
    : gamma_(std::move(gamma)), beta_(std::move(beta)) {
  require(!gamma_ || !beta_ || gamma_->size() == beta_->size(),
          "norm: gamma and beta must have the same size");
  require(std::isfinite(epsilon) && epsilon >= 0, "norm: epsilon must not be negative");
  view_ = {gamma_ ? gamma_->data() : nullptr, beta_ ? beta_->data() : nullptr, epsilon, rms};
}

bool BoundNorm::fits(int64_t features) const {
  return (!gamma_ || gamma_->size() == features) && (!beta_ || beta_->size() == features);
}

BoundRotary::BoundRotary(Floats cosines, Floats sines)
    : cosines_(std::move(cosines)), sines_(std::move(sines)) {
  require(cosines_.ndim() == 2 && sines_.ndim() == 2 && cosines_.shape(0) == sines_.shape(0) &&
              cosines_.shape(1) == sines_.shape(1) && cosines_.shape(1) > 0,
          "rotary: cosines and sines must both be [positions, half]");
  view_ = {cosines_.data(), sines_.data(), cosines_.shape(1), cosines_.shape(0)};
}

BoundBias::BoundBias(Floats values) : values_(std::move(values)) {
  require(values_.ndim() == 2 && values_.shape(1) % 2 == 1,
          "position bias: values must be [heads, 2 reach - 1]");
  view_ = {values_.data(), (values_.shape(1) + 1) / 2};
}

SublayerNorms BoundNorms::view(int64_t hidden) const {
  return {view_of(input, hidden), view_of(output, hidden), view_of(sum, hidden)};
}

void BoundAttention::check() {
  AttentionSublayer& v = view;
  require(query && output, "attention: query and output are needed");
  for (const int64_t size : {v.heads, v.key_heads, v.head_size})
    require(size > 0 && size <= kMostFeatures, "attention: sizes must be 1 or more");
  require(v.heads % v.key_heads == 0, "attention: heads must be a multiple of key_heads");
  require(std::isfinite(v.scale), "attention: scale must be finite");
  require(v.window >= 0, "attention: window must not be negative");
  require(std::isfinite(v.soft_cap) && v.soft_cap >= 0,
          "attention: soft_cap must be finite and not negative");
  require(!v.interleaved || !key, "attention: interleaved rows are those of a fused query");
  hidden = query->in();
  require(!key == !value, "attention: give both key and value, or neither");
  require(has_shape(query, key ? v.query_rows() : v.qkv_rows(), hidden) &&
              has_shape(output, hidden, v.query_rows()) &&
              (!key ||
               (has_shape(key, v.key_rows(), hidden) && has_shape(value, v.key_rows(), hidden))),
          "attention: a weight has the wrong shape");
  require(!rotary || 2 * rotary->view().half <= v.head_size,
          "attention: the rotary table is wider than half a head");
  require(!position_bias || position_bias->heads() == v.heads,
          "attention: the position bias has another number of heads");
  v.query = query->view();
  v.key = view_of(key);
  v.value = view_of(value);
  v.output = output->view();
  v.query_norm = view_of(query_norm, v.head_size);
  v.key_norm = view_of(key_norm, v.head_size);
  v.position_bias = position_bias ? position_bias->view() : nullptr;
  v.rotary = -1;
  v.norms = norms.view(hidden);
}

void BoundFeedForward::check() {
  require(up && down, "feed-forward: up and down are needed");
  hidden = up->in();
  require(!view.fused_gate || !gate, "feed-forward: give a gate of its own or a fused one");
  require(!view.fused_gate || up->out() % 2 == 0,
          "feed-forward: up and its gate have different sizes");
  view.inner = view.fused_gate ? up->out() / 2 : up->out();
  require(has_shape(down, hidden, view.inner) && (!gate || has_shape(gate, view.inner, hidden)),
          "feed-forward: a weight has the wrong shape");
  view.gate = view_of(gate);
  view.up = up->view();
  view.down = down->view();
  view.norms = norms.view(hidden);
}

BoundLayer::BoundLayer(Shared<BoundAttention> attention, Shared<BoundFeedForward> feed_forward,
                       Shared<BoundAttention> cross_attention, bool parallel)
    : attention(std::move(attention)),
      cross_attention(std::move(cross_attention)),
      feed_forward(std::move(feed_forward)),
      parallel(parallel) {
  require(this->attention && this->feed_forward, "layer: attention and feed_forward are needed");
  require(this->feed_forward->hidden == hidden() &&
              (!this->cross_attention || this->cross_attention->hidden == hidden()),
          "layer: the parts have different hidden sizes");
  if (!this->cross_attention) return;
  require(!parallel, "layer: parallel sublayers are two, attention and feed-forward");
  const BoundAttention& cross = *this->cross_attention;
  require(cross.view.key.panels && cross.view.value.panels,
          "layer: cross attention needs key and value weights for panels");
  require(!cross.view.causal && !cross.rotary && !cross.position_bias && !cross.query_norm &&
              !cross.key_norm,
          "layer: cross attention has no positions and no norms of heads");
}

Layer BoundLayer::view() const {
  return {attention->view, cross_attention ? cross_attention->view : AttentionSublayer{},
          feed_forward->view, parallel};
}

void bind_layer(py::module_& m) {
  const py::kw_only kw;
  const py::none none;
  py::class_<BoundLinear, std::shared_ptr<BoundLinear>>(
      m, "LinearPair", "One weight packed for panels, for rows or for both, and its bias.")
      .def(py::init<const py::object&, const py::object&, std::optional<Floats>>(), kw,
           py::arg("panels") = none, py::arg("rows") = none, py::arg("bias") = none)
      .def_property_readonly("out_features", &BoundLinear::out)
      .def_property_readonly("in_features", &BoundLinear::in);
  py::class_<BoundNorm, std::shared_ptr<BoundNorm>>(
      m, "Norm", "LayerNorm, or RMSNorm with rms; gamma and beta default to ones and zeros.")
      .def(py::init<std::optional<Floats>, std::optional<Floats>, float, bool>(), kw,
           py::arg("gamma") = none, py::arg("beta") = none, py::arg("epsilon"),
           py::arg("rms") = false);
  py::class_<BoundRotary, std::shared_ptr<BoundRotary>>(
      m, "RotaryTable", "Cosines and sines of rotary positions, each [positions, half].")
      .def(py::init<Floats, Floats>(), py::arg("cosines"), py::arg("sines"))
      .def_property_readonly("positions", [](const BoundRotary& r) { return r.view().positions; });
  py::class_<BoundBias, std::shared_ptr<BoundBias>>(
      m, "PositionBias", "Added to scores by query minus key, [heads, 2 reach - 1].")
      .def(py::init<Floats>(), py::arg("values"));
  py::class_<BoundAttention, std::shared_ptr<BoundAttention>>(
      m, "Attention", "AttentionSublayer of csrc/layers/layer.h.")
      .def(
          py::init([](int64_t heads, int64_t key_heads, int64_t head_size,
                      Shared<BoundLinear> query, Shared<BoundLinear> key, Shared<BoundLinear> value,
                      Shared<BoundLinear> output, bool interleaved, std::optional<float> scale,
                      float soft_cap, bool causal, int64_t window, Shared<BoundRotary> rotary,
                      Shared<BoundBias> position_bias, Shared<BoundNorm> query_norm,
                      Shared<BoundNorm> key_norm, Shared<BoundNorm> input_norm,
                      Shared<BoundNorm> output_norm, Shared<BoundNorm> sum_norm) {
            auto a = std::make_shared<BoundAttention>();
            a->view.heads = heads;
            a->view.key_heads = key_heads;
            a->view.head_size = head_size;
            a->view.scale =
                scale ? *scale : static_cast<float>(1 / std::sqrt(static_cast<double>(head_size)));
            a->view.interleaved = interleaved;
            a->view.soft_cap = soft_cap;
            a->view.causal = causal;
            a->view.window = window;
            a->query = std::move(query);
            a->key = std::move(key);
            a->value = std::move(value);
            a->output = std::move(output);
            a->rotary = std::move(rotary);
            a->position_bias = std::move(position_bias);
            a->query_norm = std::move(query_norm);
            a->key_norm = std::move(key_norm);
            a->norms = {std::move(input_norm), std::move(output_norm), std::move(sum_norm)};
            a->check();
            return a;
          }),
          kw, py::arg("heads"), py::arg("key_heads"), py::arg("head_size"), py::arg("query"),
          py::arg("key") = none, py::arg("value") = none, py::arg("output"),
          py::arg("interleaved") = false, py::arg("scale") = none, py::arg("soft_cap") = 0.0f,
          py::arg("causal") = false, py::arg("window") = 0, py::arg("rotary") = none,
          py::arg("position_bias") = none, py::arg("query_norm") = none, py::arg("key_norm") = none,
          py::arg("input_norm") = none, py::arg("output_norm") = none, py::arg("sum_norm") = none);
  py::class_<BoundFeedForward, std::shared_ptr<BoundFeedForward>>(
      m, "FeedForward", "FeedForwardSublayer of csrc/layers/layer.h.")
      .def(py::init([](Shared<BoundLinear> up, Shared<BoundLinear> down,
                       const std::string& activation, Shared<BoundLinear> gate, bool fused_gate,
                       Shared<BoundNorm> input_norm, Shared<BoundNorm> output_norm,
                       Shared<BoundNorm> sum_norm) {
             auto f = std::make_shared<BoundFeedForward>();
             f->view.activation = parse_activation(activation);
             f->view.fused_gate = fused_gate;
             f->gate = std::move(gate);
             f->up = std::move(up);
             f->down = std::move(down);
             f->norms = {std::move(input_norm), std::move(output_norm), std::move(sum_norm)};
             f->check();
             return f;
           }),
           kw, py::arg("up"), py::arg("down"), py::arg("activation"), py::arg("gate") = none,
           py::arg("fused_gate") = false, py::arg("input_norm") = none,
           py::arg("output_norm") = none, py::arg("sum_norm") = none);
  py::class_<BoundLayer, std::shared_ptr<BoundLayer>>(m, "Layer",
                                                      "One layer of csrc/layers/layer.h.")
      .def(py::init<Shared<BoundAttention>, Shared<BoundFeedForward>, Shared<BoundAttention>,
                    bool>(),
           kw, py::arg("attention"), py::arg("feed_forward"), py::arg("cross_attention") = none,
           py::arg("parallel") = false);
}

}  // namespace se
