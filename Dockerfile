# The plugin's rootfs for those who build with Docker; `make rootfs` makes the
# same without. Export it with
#   docker build --output build/plugin/rootfs .
ARG GO_VERSION=1.26
FROM golang:${GO_VERSION} AS build
ARG VERSION=unknown
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /build/underlay ./cmd/underlay \
 && scripts/rootfs /build/underlay /build/plugin

FROM scratch
COPY --from=build /build/plugin/rootfs/ /
ENTRYPOINT ["/underlay", "serve", "--socket", "/run/docker/plugins/underlay.sock", "--state", "/var/lib/underlay"]
