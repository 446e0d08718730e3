# The image of every powermean process; docker-compose.yml says which command it runs. Not built by the tests.
FROM python:3.11-slim
WORKDIR /app
RUN apt-get update && apt-get install -y --no-install-recommends make git gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . .
RUN python tools/install.py run
ENV PATH=/app/.venv/bin:$PATH
RUN useradd --create-home powermean && mkdir -p /data /secrets /public /scratch && chown powermean /data /secrets /public /scratch
USER powermean
CMD ["python", "-m", "server"]
